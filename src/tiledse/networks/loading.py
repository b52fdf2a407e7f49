"""Load the network that a MODEL text names, with weights from a file or a hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import TiledSEError
from .modes import in_eval
from .sources import Built, Size, build
from .weights import check_numbers, load_weights, read_state
from .zoo import open_network


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
    source, _, rest = name.partition(":")
    if source == "zoo" and rest:
        model, own_size = _from_zoo(rest, pretrained, input_size)
    else:
        model, own_size = build(name, pretrained, input_size)
    if weights is not None:
        if source == "timm":
            _take_head(model, read_state(Path(weights)))
        load_weights(model, Path(weights))
    check_numbers(model, name, runs)
    random = source != "zoo" and not pretrained and weights is None
    return Loaded(in_eval(model), name, input_size or own_size, random)


def _from_zoo(name: str, pretrained: bool, size: Size | None) -> Built:
    model, _, entry = open_network(name)
    if pretrained:
        raise TiledSEError(f"zoo:{name} comes with its weights; leave --pretrained out")
    if size is not None and size[0] != entry.input_size[0]:
        raise TiledSEError(f"zoo:{name} takes images of {entry.input_size[0]} channels, not {size[0]}")
    return model, entry.input_size


def _take_head(model: Any, state: dict[str, Tensor]) -> None:
    """Give a timm network a head of the classes that its weights have: those trained on one's own images."""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    weight = state.get(f"{name}.weight") if isinstance(name, str) else None
    if weight is not None and weight.ndim >= 2 and len(weight) != model.num_classes:
        model.reset_classifier(len(weight))
