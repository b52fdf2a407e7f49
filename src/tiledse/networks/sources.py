"""Build a network by name: of timm, torchvision or effdet, or by a factory in somebody's own module."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..errors import TiledSEError, first_line
from ..extras import missing
from ..forms import FORMS
from .strangers import call_named, import_named

Size = tuple[int, int, int]
Built = tuple[nn.Module, "Size | None"]


def build(name: str, pretrained: bool = False, size: Size | None = None) -> Built:
    """Build a network by name.

    Args:
        name: MODEL, but no ``zoo:NAME``: those are built from another MODEL and have their weights.
        pretrained: With the library's own weights, from its hub; else with random ones.
        size: (C, H, W), for networks that are built for one size.

    Returns:
        The network, and the image size that it is made for; None where it does not say.

    Raises:
        TiledSEError: an unknown name, a library that is not installed, a hub that cannot be reached.

    Example:
        >>> build("timm:regnety_002")[1]
        (3, 224, 224)
    """
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise TiledSEError(f"no model '{name}'; expected {FORMS}{_instead(name)}")
    if source == "zoo":
        raise TiledSEError(
            f"{name} is trained, and its tiles are in place; expected a network to build, such as timm:NAME"
        )
    if source in _SOURCES:
        return _SOURCES[source](rest, pretrained, size)
    return _from_factory(name, pretrained)


def _instead(name: str) -> str:
    """What a text without a form may have been: a name of timm, or a file that holds weights and no network."""
    import timm

    if Path(name).suffix.lower() in _WEIGHTS:
        return "; a file of weights goes with the network that it belongs to: timm:NAME --weights " + name
    # Without what stands for the training behind the dot: timm:NAME.TAG is a name as well.
    return f"; did you mean timm:{name}?" if name and timm.is_model(name.partition(".")[0]) else ""


def _from_timm(name: str, pretrained: bool, size: Size | None) -> Built:
    import timm

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model = _fetch(lambda: timm.create_model(name, pretrained=pretrained), "timm", name, pretrained)
    own = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return model, None if own is None else tuple(own)


def _from_torchvision(name: str, pretrained: bool, size: Size | None) -> Built:
    from torchvision import models

    if name not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    backbone = {"weights_backbone": None} if name in _with_backbone() and not pretrained else {}
    weights = "DEFAULT" if pretrained else None
    model = _fetch(
        lambda: models.get_model(name, weights=weights, **backbone), "torchvision", name, pretrained
    )
    return model, (3, 224, 224)


def _with_backbone() -> set[str]:
    from torchvision import models

    return {*models.list_models(models.segmentation), *models.list_models(models.detection)}


def _from_effdet(name: str, pretrained: bool, size: Size | None) -> Built:
    try:
        with warnings.catch_warnings():
            # effdet scripts a loss when it is imported, which torch says it will not support for ever.
            warnings.simplefilter("ignore", FutureWarning)
            import effdet
        from effdet.config import get_efficientdet_config
        from effdet.config.model_config import efficientdet_model_param_dict
    except ImportError as error:
        raise missing(f"effdet:{name} needs", "effdet", error=error) from error
    if name not in efficientdet_model_param_dict:
        raise _unknown("effdet", name, list(efficientdet_model_param_dict))
    config = get_efficientdet_config(name)
    if size is not None:
        config.image_size = size[1:]

    def create() -> nn.Module:
        if pretrained:
            return effdet.create_model_from_config(
                config, bench_task="", pretrained=True, pretrained_backbone=False
            )
        return effdet.EfficientDet(config, pretrained_backbone=False)

    model = _fetch(create, "effdet", name, pretrained)
    return model, (3, *config.image_size)


def _from_factory(name: str, pretrained: bool) -> Built:
    path = name.partition(":")[0]
    if pretrained:
        raise TiledSEError(
            f"--pretrained goes with timm, torchvision and effdet, not with '{name}'; use --weights"
        )
    _check_prefix(name, path)
    model = call_named(import_named(name, "", FORMS), name)
    if not isinstance(model, nn.Module):
        raise TiledSEError(f"{name}() gave a {type(model).__name__}; expected a torch.nn.Module")
    return model, None


def _check_prefix(name: str, path: str) -> None:
    """A prefix with a typing error must not import, and run, whatever has that name.

    Raises:
        TiledSEError: it reads like a known prefix, and the working folder has no module of that name.
    """
    prefixes = (*_SOURCES, "zoo")
    near = difflib.get_close_matches(path.lower(), prefixes, 1, 0.75)
    here = Path(f"{path}.py").is_file() or Path(path).is_dir()
    if near and (path.lower() in prefixes or not here):
        raise TiledSEError(
            f"no model '{name}'; did you mean {near[0]}:{name.partition(':')[2]}? Nothing was imported; "
            f"expected {FORMS}"
        )


_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

_SOURCES: dict[str, Callable[[str, bool, Size | None], Built]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "effdet": _from_effdet,
}


def _fetch(create: Callable[[], nn.Module], source: str, name: str, pretrained: bool) -> nn.Module:
    if not pretrained:
        return create()
    # The hub's client writes a line for each of its many retries; what failed is said once, below.
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    try:
        return create()
    except Exception as error:  # hubs fail in many ways: no network, no such file, a proxy's answer
        raise TiledSEError(
            f"no pretrained weights for {source}:{name} ({type(error).__name__}: {first_line(error, 120)}); "
            "is the hub reachable? Give a file with --weights, or leave --pretrained out for random weights"
        ) from error


def _unknown(source: str, name: str, names: list[str]) -> TiledSEError:
    near = difflib.get_close_matches(name, names, 3)
    hint = f"; did you mean {', '.join(near)}?" if near else f"; {source} has {len(names)} models"
    return TiledSEError(f"{source} has no model '{name}'{hint}")
