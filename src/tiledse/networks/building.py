"""Networks to train: with a head of so many classes, and with other blocks where SE stood."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from ..errors import TiledSEError, first_line
from ..op.module import TiledSqueezeExcite
from ..plan import Plan
from ..tile import Tile
from .dialects import Dialect, Layers
from .finder import find_dialects
from .inline_block import DIALECT as INLINE
from .modes import in_train
from .sources import build
from .weights import check_numbers

Size = tuple[int, int, int]


def build_classifier(model: str, classes: int, input_size: Size) -> nn.Module:
    """A network with random weights and a head of ``classes``.

    Args:
        model: MODEL; a ``package.module:factory`` must have the head already.
        classes: Of the head.
        input_size: (C, H, W) of its images.

    Raises:
        TiledSEError: an unknown network, or it refuses that head.

    Example:
        >>> build_classifier("timm:regnety_002", 10, (3, 64, 64)).get_classifier().out_features
        10
    """
    source, _, name = model.partition(":")
    network = build(model, size=input_size)[0]
    check_numbers(network, model)
    if source in ("timm", "torchvision") and (classes != 1000 or input_size[0] != 3):
        try:
            network = _timm(name, classes, input_size[0]) if source == "timm" else _torchvision(name, classes)
        except TypeError as error:
            raise TiledSEError(f"{model} takes no head of {classes} classes: {first_line(error)}") from error
    return in_train(network)


def _timm(name: str, classes: int, channels: int) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=classes, in_chans=channels)


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    return models.get_model(name, num_classes=classes)


def without_attention(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the network whose SE blocks pass their map on unchanged (the paper's "Vanilla").

    Args:
        model: The network.
        plan: From ``find`` on it.

    Raises:
        TiledSEError: a block is no module of its own.

    Example:
        >>> import timm
        >>> from .finder import find
        >>> model = timm.create_model("regnety_002")
        >>> plain = without_attention(model, find(model, (3, 64, 64)))
        >>> type(plain.s1.b1.se).__name__, len(find(plain, (3, 64, 64)))
        ('Identity', 0)
    """
    _check_modules(plan)
    model = copy.deepcopy(model)
    for block in plan.blocks:
        _put(model, block.name, nn.Identity())
    return model


def with_excitation(
    model: nn.Module,
    tile: str | Tile,
    input_size: Size,
    kernel: tuple[int, int] = (1, 1),
    ratio: float | None = None,
) -> nn.Module:
    """A copy of the network with blocks built from scratch where its SE blocks stood (the paper's appendix B).

    Args:
        model: The network; the activations and gate functions of its blocks are kept.
        tile: The tile.
        input_size: (C, H, W).
        kernel: (along, across) the tiles, of both convolutions.
        ratio: The paper's R, relative to 4 of the network's own blocks; None keeps their widths.

    Raises:
        TiledSEError: no SE block, or one that does not say its activation and its gate function.

    Example:
        >>> import timm
        >>> model = with_excitation(timm.create_model("regnety_002"), "1xW", (3, 64, 64), (3, 1), 2)
        >>> model.s1.b1.se.fc1
        Conv2d(24, 16, kernel_size=(3, 1), stride=(1, 1), padding=(1, 0))
    """
    plan, dialects = find_dialects(model, input_size)
    if not len(plan):
        raise TiledSEError("the network has no SE block to put another in the place of")
    _check_modules(plan)
    model = copy.deepcopy(model)
    for block, dialect in zip(plan.blocks, dialects, strict=True):
        if block.reduced is None:
            raise TiledSEError(
                f"block '{block.name}' ({dialect.name}) has no reduced width; expected two convolutions"
            )
        act, gate = _functions(model.get_submodule(block.name), dialect)
        reduced = block.reduced if ratio is None else max(1, round(block.reduced * 4 / ratio))
        tiled = TiledSqueezeExcite(
            block.channels, reduced, tile, act=_copies(act), gate=_copies(gate), kernel_size=kernel
        )
        _put(model, block.name, tiled)
    return model


def _check_modules(plan: Plan) -> None:
    for block in plan.blocks:
        if block.dialect == INLINE:
            raise TiledSEError(
                f"block '{block.name}' is written inline in a larger forward; other blocks can be built only where "
                "SE is a module of its own"
            )


def _functions(block: nn.Module, dialect: Dialect) -> tuple[nn.Module, nn.Module]:
    """The activation and the gate function of a block: what follows its two layers with weights."""
    if not isinstance(dialect.excite, Layers):
        raise TiledSEError(
            f"a block of {dialect.cls} ({dialect.name}) computes its gates in its own forward, which does not say what "
            "its activation and its gate function are; register a dialect whose excitation is Layers(...)"
        )
    layers = [getattr(block, name) for name in dialect.excite.names]
    plain = [layer for layer in layers if isinstance(layer, nn.Module) and not list(layer.parameters())]
    plain = [layer for layer in plain if not isinstance(layer, nn.Identity)]
    if len(plain) != 2:
        raise TiledSEError(
            f"{dialect.name}: expected an activation and a gate function, found {len(plain)} layers"
        )
    return plain[0], plain[1]


def _copies(layer: nn.Module) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(layer)


def _put(model: nn.Module, name: str, block: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, block)
