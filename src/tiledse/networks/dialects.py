"""The table of SE classes: for each, how its excitation is called on descriptors alone.

A class that is not in the table is recognised by what it computes (recognition.py). The table gives the known ones
their names, and covers what cannot be seen by tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import TiledSEError
from ..op.excitation import apply
from ..op.formula import Reduce, mean, mean_and_max
from .own_forward import OwnForward
from .valid import ValidFrames, full_counts, of_counts, of_shares, own_call


@dataclass(frozen=True)
class Layers:
    """An excitation that calls the named layers of a block one after the other.

    Args:
        names: Attributes of the block, in order.
        channels_last: The layers take channels in the last axis (``nn.Linear``).

    Example:
        >>> import torch
        >>> from timm.layers import SEModule
        >>> Layers(("fc1", "bn", "act", "fc2", "gate"))(SEModule(64), torch.zeros(2, 64, 8, 1)).shape
        torch.Size([2, 64, 8, 1])
    """

    names: tuple[str, ...]
    channels_last: bool = False

    def __call__(self, block: nn.Module, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape."""
        z = descriptors.permute(0, 2, 3, 1) if self.channels_last else descriptors
        for name in self.names:
            z = apply(getattr(block, name), z)
        return z.permute(0, 3, 1, 2) if self.channels_last else z


def mean_only(block: nn.Module) -> Reduce:
    """The squeeze of a block that takes means and nothing else."""
    return mean


def mean_or_add_maxpool(block: nn.Module) -> Reduce:
    """The squeeze of timm's modules, which mix in a maximum with ``add_maxpool=True``."""
    return mean_and_max if block.add_maxpool else mean


@dataclass(frozen=True)
class Dialect:
    """One spelling of squeeze-and-excite.

    Args:
        name: What plans call it.
        cls: The class, as ``package.module.Class``. Subclasses count where they inherit its forward.
        excite: ``(block, descriptors) -> gates``, both (N, C, rows, cols), on any grid of tiles. A function of
            a module or a ``Layers``, not a lambda, if converted networks are to be pickled.
        squeeze: ``block -> reduce``: what a tile is squeezed with; means, unless told otherwise.
        nhwc: Whether the block takes maps with channels last: (N, H, W, C).
        axes: Axes of its maps behind the channels: 1 of sound, 2 of images, 3 of volumes and video.
        valid: For a block that is called with lengths or a mask too: which frames its mean is taken over.
    """

    name: str
    cls: str
    excite: Callable[[nn.Module, Tensor], Tensor]
    squeeze: Callable[[nn.Module], Reduce] = mean_only
    nhwc: bool = False
    axes: int = 2
    valid: ValidFrames | None = None

    def channels_first(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a map of the block without its batch, channels first: (C, T), (C, H, W), (C, D, H, W)."""
        return (shape[-1], *shape[1:-1]) if self.nhwc else shape[1:]

    def rows(self, x: Tensor) -> Tensor:
        """A map as the block takes it, as (N, C, H, W): a view of the first axis, and of the others together."""
        if self.axes == 2:
            return x.permute(0, 3, 1, 2) if self.nhwc else x
        x = x.movedim(-1, 1) if self.nhwc else x
        return x.unsqueeze(3) if self.axes == 1 else x.flatten(3)

    def native(self, y: Tensor, sides: tuple[int, ...]) -> Tensor:
        """(N, C, H, W) as the block takes it: the way back of ``rows``, for a map of these sides."""
        if self.axes == 2:
            return y.permute(0, 2, 3, 1) if self.nhwc else y
        y = y.squeeze(3) if self.axes == 1 else y.unflatten(3, tuple(sides[1:]))
        return y.movedim(1, -1) if self.nhwc else y

    def call(self, block: nn.Module, x: Tensor) -> Any:
        """The block on a map alone, as the block takes it."""
        return block(x) if self.valid is None or hasattr(block, "tiledse") else self.valid.alone(block, x)

    def sides(self, x: Tensor) -> tuple[int, ...]:
        """The axes of a map behind the channels, as the block takes it."""
        return tuple(x.shape[1:-1] if self.nhwc else x.shape[2:])


_CONVS = Layers(("fc1", "bn", "act", "fc2", "gate"))

_TABLE: dict[str, Dialect] = {
    dialect.cls: dialect
    for dialect in (
        Dialect("timm.SEModule", "timm.layers.squeeze_excite.SEModule", _CONVS, mean_or_add_maxpool),
        Dialect(
            "timm.EffectiveSEModule",
            "timm.layers.squeeze_excite.EffectiveSEModule",
            Layers(("fc", "gate")),
            mean_or_add_maxpool,
        ),
        Dialect(
            "timm.SqueezeExciteCl",
            "timm.layers.squeeze_excite.SqueezeExciteCl",
            Layers(("fc1", "act", "fc2", "gate"), channels_last=True),
            nhwc=True,
        ),
        Dialect(
            "timm.SqueezeExcite",
            "timm.models._efficientnet_blocks.SqueezeExcite",
            Layers(("conv_reduce", "act1", "conv_expand", "gate")),
        ),
        Dialect(
            "timm.senet.SEModule", "timm.models.senet.SEModule", Layers(("fc1", "relu", "fc2", "sigmoid"))
        ),
        Dialect("timm.hgnet.EseModule", "timm.models.hgnet.EseModule", Layers(("conv", "sigmoid"))),
        Dialect(
            "torchvision.SqueezeExcitation",
            "torchvision.ops.misc.SqueezeExcitation",
            Layers(("fc1", "activation", "fc2", "scale_activation")),
        ),
        Dialect(
            "speechbrain.SEBlock",
            "speechbrain.lobes.models.ECAPA_TDNN.SEBlock",
            OwnForward(axes=1),
            axes=1,
            valid=ValidFrames(of_shares),
        ),
        Dialect(
            "nemo.SqueezeExcite",
            "nemo.collections.asr.parts.submodules.jasper.SqueezeExcite",
            OwnForward(axes=1, alone=full_counts),
            axes=1,
            valid=ValidFrames(of_counts, full_counts, zeroed=True, passes=True),
        ),
    )
}


def register_dialect(
    name: str,
    cls: type[nn.Module],
    excite: Callable[[nn.Module, Tensor], Tensor] | None = None,
    *,
    squeeze: Callable[[nn.Module], Reduce] = mean_only,
    nhwc: bool = False,
    axes: int = 2,
    valid: ValidFrames | None = None,
) -> Dialect:
    """Teach ``find`` and ``convert`` an SE class that they do not recognise by themselves.

    Args:
        name: What plans call it, such as ``mylib.SE``.
        cls: The class.
        excite: ``(block, descriptors) -> gates``, both (N, C, rows, cols); ``Layers`` for layers in a row. Left out, it
            is what the block's own forward does with a map of one element.
        squeeze: ``block -> reduce``, for a squeeze that is not a mean.
        nhwc: Whether the block takes maps with channels last, (N, H, W, C).
        axes: Axes of its maps behind the channels: 1 of sound, 2 of images, 3 of volumes and video.
        valid: For a block that is called with lengths or a mask beside its map; see ``ValidFrames``.

    Raises:
        TiledSEError: the class has a dialect already.

    Example:
        >>> class MySE(nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        ...     def gates(self, z):
        ...         return self.up(self.down(z).relu()).sigmoid()
        ...     def forward(self, x):
        ...         return x * self.gates(x.mean((2, 3), keepdim=True))
        >>> register_dialect("mylib.MySE", MySE, MySE.gates).name
        'mylib.MySE'
    """
    if excite is None:
        excite = OwnForward(nhwc, axes, own_call if valid is None else valid.alone)
    key = class_name(cls)
    if key in _TABLE:
        raise TiledSEError(f"{key} has a dialect already: '{_TABLE[key].name}'; register a class once")
    _TABLE[key] = Dialect(name, key, excite, squeeze, nhwc, axes, valid)
    return _TABLE[key]


def known_dialect(block: nn.Module) -> Dialect | None:
    """The registered dialect of a block: of its class, or of the one that its forward comes from."""
    for cls in type(block).__mro__:
        known = _TABLE.get(class_name(cls))
        if known is not None or "forward" in vars(cls):
            return known
    return None


def class_name(cls: type) -> str:
    """``package.module.Class``."""
    return f"{cls.__module__}.{cls.__qualname__}"
