"""Load the network that a MODEL text names, with weights from a file or a hub."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import TiledSEError, first_line
from .modes import in_eval
from .strangers import call_named, import_named
from .weights import check_numbers, load_weights, read_state

FORMS = "timm:NAME, torchvision:NAME, effdet:NAME, zoo:NAME, package.module:factory or FILE.onnx"


@dataclass(frozen=True)
class Loaded:
    """A network, what it was called, and the image that it takes.

    Attributes:
        model: The network, in eval mode.
        name: The MODEL text.
        input_size: (C, H, W): the one asked for, else the network's own; None where neither is known.
        random: Whether the weights are random, because none were asked for.
    """

    model: nn.Module
    name: str
    input_size: tuple[int, int, int] | None
    random: bool


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    input_size: tuple[int, int, int] | None = None,
    runs: bool = True,
) -> Loaded:
    """Load a network by name.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``effdet:NAME``, ``zoo:NAME`` (trained, with its tiles in place) or
            ``package.module:factory``, a callable without arguments that gives an ``nn.Module`` (the working folder is
            searched too).
        weights: A state dict, as safetensors or a torch checkpoint. Checkpoints are read without running any
            code that they may hold. A timm network gets the head of as many classes as they have.
        pretrained: Take the library's own weights, from its hub.
        input_size: (C, H, W), for networks that are built for one size (EfficientDet).
        runs: Whether it is to be run; one that is only looked at may be without numbers, on torch's device ``meta``.

    Raises:
        TiledSEError: an unknown name, a library that is not installed, weights that do not fit or cannot be
            read, a hub that cannot be reached, a network whose weights are not finite, wherever they come from.

    Example:
        >>> load("timm:regnety_002").input_size
        (3, 224, 224)
    """
    if weights is not None and pretrained:
        raise TiledSEError("--weights and --pretrained both name the weights; give one of them")
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise TiledSEError(f"no model '{name}'; expected {FORMS}")
    build = _SOURCES.get(source, _from_factory)
    model, own_size = build(name if build is _from_factory else rest, pretrained, input_size)
    if weights is not None:
        if source == "timm":
            _take_head(model, read_state(Path(weights)))
        load_weights(model, Path(weights))
    check_numbers(model, name, runs)
    random = source != "zoo" and not pretrained and weights is None
    return Loaded(in_eval(model), name, input_size or own_size, random)


Size = tuple[int, int, int]
Built = tuple[nn.Module, "Size | None"]


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
        raise TiledSEError(
            f"effdet:{name} needs the package effdet ({first_line(error)}); "
            "install it with: pip install 'tiledse[detection]'"
        ) from error
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


def _from_zoo(name: str, pretrained: bool, size: Size | None) -> Built:
    from .zoo import open_network

    model, _, entry = open_network(name)
    if pretrained:
        raise TiledSEError(f"zoo:{name} comes with its weights; leave --pretrained out")
    if size is not None and size[0] != entry.input_size[0]:
        raise TiledSEError(f"zoo:{name} takes images of {entry.input_size[0]} channels, not {size[0]}")
    return model, entry.input_size


def _from_factory(name: str, pretrained: bool, size: Size | None) -> Built:
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
    near = difflib.get_close_matches(path.lower(), _SOURCES, 1, 0.75)
    here = Path(f"{path}.py").is_file() or Path(path).is_dir()
    if near and (path.lower() in _SOURCES or not here):
        raise TiledSEError(
            f"no model '{name}'; did you mean {near[0]}:{name.partition(':')[2]}? Nothing was imported; "
            f"expected {FORMS}"
        )


_SOURCES: dict[str, Callable[[str, bool, Size | None], Built]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "effdet": _from_effdet,
    "zoo": _from_zoo,
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


def _take_head(model: Any, state: dict[str, Tensor]) -> None:
    """Give a timm network a head of the classes that its weights have: those trained on one's own images."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    weight = state.get(f"{name}.weight") if isinstance(name, str) else None
    if weight is not None and weight.ndim >= 2 and len(weight) != model.num_classes:
        model.reset_classifier(len(weight))
