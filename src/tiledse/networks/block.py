"""TiledBlock: an SE block of somebody else's network, with tiles."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx, nn

from ..correction import Correction
from ..errors import TiledSEError, first_line
from ..op.functional import correct, direct, scale, tiled_squeeze_excite
from ..op.grids import is_eager
from ..op.module import TiledSqueezeExcite
from ..tile import Tile
from .dialects import Dialect, Layers
from .frames import begin, forget, gated
from .inline_block import holder
from .subclass import Signature, tiled_class
from .valid import checked, means

# Buffers of a corrected block; not in its state_dict, whose keys stay those of the SE block.
_NUMBERS = ("_tiledse_own", "_tiledse_running", "_tiledse_offset")


@dataclass(frozen=True)
class Way:
    """How a block does what it does, beside its dialect: what the proof of its conversion found out.

    Args:
        inplace: It writes the product into the map that it was given.
        folded: Its excitation takes one tile an image only, so the tiles are folded into the batch.
        folded_training: The same while it is trained.
        read: What its own forward reads at each call, and its excitation does not: (module in it, attribute, value).
    """

    inplace: bool = False
    folded: bool = False
    folded_training: bool = False
    read: tuple[tuple[str, str, Any], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the excitation is called on the grid of tiles at all times."""
        return not (self.folded or self.folded_training)

    def check(self, block: nn.Module) -> None:
        """Check that what the block's own forward would read is what it was.

        Raises:
            TiledSEError: it was set to something else since.
        """
        for path, name, value in self.read:
            now = getattr(block.get_submodule(path), name, None)
            if now is not value and now != value:
                raise TiledSEError(
                    f"'{f'{path}.{name}'.lstrip('.')}' of a converted block was {value!r} when it was converted and is "
                    f"{now!r} now, which its tiles do not follow; set it in the SE network and convert again"
                )


@dataclass(frozen=True)
class Conversion:
    """What was made of a block.

    Args:
        tile: Its tile.
        dialect: How its excitation is called.
        source: The class that it had.
        correction: Of its descriptors, from a calibration.
        way: See Way.

    Attributes:
        plain: Whether a map goes into the operator as it is, and comes out of it as the block gives it.
    """

    tile: Tile
    dialect: Dialect
    source: type[nn.Module]
    correction: Correction | None = None
    way: Way = field(default_factory=Way)

    plain: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        dialect, tile, way = self.dialect, self.tile, self.way
        seen_as_rows = dialect.nhwc or dialect.axes != 2 or tile.axes != 2
        more = way.read or way.inplace or tile.previous or self.correction is not None
        object.__setattr__(self, "plain", not (seen_as_rows or more))

    def __deepcopy__(self, memo: object) -> Conversion:
        return self  # a value


class TiledBlock(nn.Module):
    """An SE block whose squeeze is tiled; in all else it is the block that it was.

    Its class is made for it (``subclass.tiled_class``) and comes first of two: this one, then the block's own. So it
    is an instance of its own class still, with that class's methods, signature and state; parameters, buffers, hooks
    and attributes are those that it had.

    Attributes:
        tiledse: What was made of it.
        tile, dialect, source, correction: The parts of ``tiledse``. These names, and ``excite``, ``layers`` and
            ``restore``, are given only where the block has none of its own under them.

    Shape:
        (N, C, H, W) to (N, C, H, W), also (N, C, T) and (N, C, D, H, W); channels last where the block had it so.
    """

    tiledse: Conversion

    if TYPE_CHECKING:
        tile: Tile
        dialect: Dialect
        source: type[nn.Module]
        correction: Correction | None

        def restore(self) -> nn.Module:
            """The SE block that this one was; parameters are shared with it, not copied."""

        def layers(self) -> tuple[nn.Module, ...] | None:
            """What ``excite`` calls, in order, where it is layers in a row on channels in the second axis."""

        def excite(self, descriptors: Tensor) -> Tensor:
            """Descriptors (N, C, rows, cols) to gates of the same shape, by the layers of the block."""

    def __init_subclass__(cls) -> None:
        """No word to the block's own class, which may keep a register of the subclasses that it knows."""

    @property
    def _tiledse_numbers(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Of a corrected block: what ``correct`` takes, each (C, strips, 1)."""
        return tuple(getattr(self, name) for name in _NUMBERS)

    def _tiledse_excite(self, descriptors: Tensor) -> Tensor:
        """See excite."""
        made = self.tiledse
        way = made.way
        excite = made.dialect.excite
        if isinstance(descriptors, fx.Proxy):
            return _traced(excite, self, descriptors)
        if way.folded_training if self.training else way.folded:
            return _folded(excite, self, descriptors)
        return excite(self, descriptors)

    def _tiledse_layers(self) -> tuple[nn.Module, ...] | None:
        """See layers."""
        made = self.tiledse
        named = made.dialect.excite
        if not isinstance(named, Layers) or named.channels_last or not made.way.plain:
            return None
        held = self._modules  # Module's own lookup takes longer
        return tuple([held.get(name) or getattr(self, name) for name in named.names])

    def _tiledse_forward(self, x: Tensor) -> Tensor:
        """Scale each tile by the gate computed from that tile."""
        made = self.tiledse
        if made.plain:
            return tiled_squeeze_excite(x, self._tiledse_excite, made.tile, made.dialect.squeeze(self))
        if made.way.read:
            made.way.check(self)
        whole, dialect, tile = x, made.dialect, made.tile.on(2)
        x = dialect.rows(x)
        if made.correction is not None:
            descriptors = self._tiledse_corrected(x, made.correction)
            x = scale(x, direct(self._tiledse_excite, x)(descriptors), tile)
        elif made.tile.previous:
            into = made.way.inplace and is_eager(x) and not torch.is_grad_enabled() and _shared(x, whole)
            given = x.clone() if made.way.inplace and not into else x
            x = gated(self, given, tile, self._tiledse_excite, into)
            if into:
                return whole
        else:
            reduce = made.dialect.squeeze(self)
            into = made.way.inplace and is_eager(x) and not torch.is_grad_enabled() and _shared(x, whole)
            # What is written over below must not be what a gradient needs.
            given = x.clone() if made.way.inplace and not into else x
            x = tiled_squeeze_excite(given, self._tiledse_excite, tile, reduce, inplace=into)
            if into:
                return whole
        if dialect.nhwc or dialect.axes != 2:
            x = dialect.native(x, dialect.sides(whole))
        return whole.copy_(x) if made.way.inplace else x

    def _tiledse_valid(self, *args: Any, **kwargs: Any) -> Any:
        """The same for a call with lengths or a mask: means over the valid frames of each tile."""
        made = self.tiledse
        valid = made.dialect.valid
        assert valid is not None
        x = Signature.of(made.source).first_of(args, kwargs)
        frames = valid.frames(self, *args, **kwargs)
        y = self._tiledse_forward(x) if frames is None else self._tiledse_gated(x, frames)
        return (y, *args[1:], *kwargs.values()) if valid.passes else y

    def _tiledse_gated(self, x: Tensor, frames: Tensor) -> Tensor:
        """Scale each tile by the gate computed from its valid frames."""
        made = self.tiledse
        dialect, tile = made.dialect, made.tile.on(2)
        if made.correction is not None:
            raise TiledSEError(
                "a calibrated block takes no lengths and no mask; give it a batch of one length"
            )
        if tile.previous:
            raise TiledSEError(
                f"tile {tile}: the previous frame has no valid frames of its own; give it no mask"
            )
        if made.way.read:
            made.way.check(self)
        mask, rows = dialect.rows(checked(frames, x, self, -1 if dialect.nhwc else 1)), dialect.rows(x)
        gates = self._tiledse_excite(means(rows, mask, tile))
        y = dialect.native(scale(rows, gates, tile), dialect.sides(x))
        return torch.where(frames > 0, y, 0.0) if dialect.valid is not None and dialect.valid.zeroed else y

    def _tiledse_corrected(self, x: Tensor, correction: Correction) -> Tensor:
        """Descriptors by the numbers of the calibration."""
        if isinstance(x, fx.Proxy):
            raise TiledSEError(
                "torch.fx cannot trace a calibrated block, whose numbers belong to maps of one height; "
                "use torch.export or torch.jit.trace"
            )
        if x.dim() != 4 or x.shape[2] != correction.height:
            raise TiledSEError(
                f"this block is calibrated for maps of {correction.height} rows, but got a map of {tuple(x.shape)}; "
                "give the network images of the size that it was calibrated with, or calibrate for this size"
            )
        return correct(x, self.tiledse.tile.on(2), self._tiledse_numbers)

    def extra_repr(self) -> str:
        """What the block says, tile and dialect, for print(model)."""
        made = self.tiledse
        calibrated = "" if made.correction is None else ", calibrated"
        own = made.source.extra_repr(self)
        return f"{own}{', ' if own else ''}tile={made.tile}, dialect={made.dialect.name}{calibrated}"

    def _tiledse_restore(self) -> nn.Module:
        """See restore."""
        return untile(twin(self))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Made again from the class that it had, for its own class stands in no module."""
        getstate = getattr(self, "__getstate__", None)  # object has one from Python 3.11 on
        state = vars(self).copy() if getstate is None else getstate()
        free = tuple(name for name in _GIVEN if name in vars(type(self)))
        return _blank, (self.tiledse, free), state


# What a converted block is given where it has nothing of its own under these names.
_GIVEN: dict[str, Any] = {
    "tile": property(lambda self: self.tiledse.tile),
    "dialect": property(lambda self: self.tiledse.dialect),
    "source": property(lambda self: self.tiledse.source),
    "correction": property(lambda self: self.tiledse.correction),
    "excite": TiledBlock._tiledse_excite,
    "layers": TiledBlock._tiledse_layers,
    "restore": TiledBlock._tiledse_restore,
}


def tile_block(block: nn.Module, made: Conversion) -> TiledBlock:
    """Make a plain SE block a tiled one: this very object, so that whoever holds it holds the tiled one.

    Raises:
        TiledSEError: no subclass can be made of its class, or its forward is one of its own.
    """
    if "forward" in vars(block):
        raise TiledSEError(
            "its forward is set on the instance (as accelerate's hooks do), which a tiled block cannot call; "
            "take it off, convert, and set it again"
        )
    free = tuple(name for name in _GIVEN if not _has(block, name))
    cls = _class_of(made.source, free)
    object.__setattr__(block, "tiledse", made)
    object.__setattr__(block, "__class__", cls)
    tiled = cast(TiledBlock, block)
    if made.tile.previous:
        begin(tiled)
    correction = made.correction
    if correction is not None:
        like = next(iter(holder(block).parameters()), torch.empty(0))
        for name, array in zip(_NUMBERS, (correction.own, correction.running, correction.offset)):
            numbers = None if array is None else torch.tensor(array)[:, :, None].to(like)
            tiled.register_buffer(name, numbers, persistent=False)
    return tiled


def untile(block: nn.Module) -> nn.Module:
    """Make a tiled block the plain SE block that it was: this very object."""
    source = cast(TiledBlock, block).tiledse.source
    object.__setattr__(block, "__class__", source)
    del block.__dict__["tiledse"]
    forget(block)
    for name in _NUMBERS:
        block._buffers.pop(name, None)
        block._non_persistent_buffers_set.discard(name)
    return block


def set_tile(
    block: nn.Module,
    dialect: Dialect,
    tile: Tile,
    correction: Correction | None = None,
    way: Way | None = None,
) -> None:
    """Give an SE block a tile, whatever it has now; ``HxW`` makes it plain SE. It stays the same object.

    Args:
        block: A plain SE block, a TiledBlock or a TiledSqueezeExcite.
        dialect: Of a plain block; a tiled one knows its own.
        tile: The tile.
        correction: Of its descriptors, from a calibration.
        way: How the block does what it does; a tiled one knows its own.

    Raises:
        TiledSEError: see ``tile_block``.
    """
    if isinstance(block, TiledSqueezeExcite):
        block.tile = tile
        return
    if isinstance(block, TiledBlock):
        dialect, way = block.tiledse.dialect, way or block.tiledse.way
        untile(block)
    if tile != Tile(None, None):
        tile_block(block, Conversion(tile, dialect, type(block), correction, way or Way()))


def _shared(view: Tensor, x: Tensor) -> bool:
    """Whether a map and what it was seen as are the same memory, so that what is written into one is in the other."""
    return view.data_ptr() == x.data_ptr()


def _has(block: nn.Module, name: str) -> bool:
    """Whether a block has something of its own under a name."""
    held = (vars(block), block._modules, block._parameters, block._buffers)
    return hasattr(type(block), name) or any(name in names for names in held)


def _class_of(source: type[nn.Module], free: tuple[str, ...]) -> type[nn.Module]:
    given = {name: _GIVEN[name] for name in free}
    if hasattr(source, "__deepcopy__"):
        given["__deepcopy__"] = _deepcopy
    return tiled_class(source, TiledBlock, given)


def _deepcopy(block: TiledBlock, memo: dict[int, Any]) -> TiledBlock:
    """A copy of a block whose class copies itself in its own way."""
    copied = tile_block(copy.deepcopy(untile(twin(block)), memo), block.tiledse)
    memo[id(block)] = copied
    return copied


def _blank(made: Conversion, free: tuple[str, ...]) -> nn.Module:
    """A converted block without its state, for copies and pickles."""
    block = object.__new__(_class_of(made.source, free))
    block.__dict__["tiledse"] = made
    return block


def twin(block: nn.Module) -> nn.Module:
    """Another object of the same class and state: tables of its own, the same tensors and layers."""
    other = object.__new__(type(block))
    other.__dict__.update(
        {key: value.copy() if isinstance(value, (dict, set)) else value for key, value in vars(block).items()}
    )
    return other


def _traced(excite: Callable[[nn.Module, Tensor], Tensor], block: nn.Module, descriptors: Any) -> Any:
    """The excitation in a trace by torch.fx.

    Raises:
        TiledSEError: it is no list of layers that can be called by themselves.
    """
    try:
        return excite(block, descriptors)
    except TiledSEError:  # which says so itself
        raise
    except Exception as error:
        raise TiledSEError(
            f"torch.fx cannot trace the excitation of this block apart from its forward ({first_line(error, 60)}); use "
            "torch.export or torch.jit.trace, or register a dialect for its class with the layers in order"
        ) from error


def _folded(excite: Callable[[nn.Module, Tensor], Tensor], block: nn.Module, descriptors: Tensor) -> Tensor:
    """The excitation of descriptors (N, C, rows, cols), called on one tile an image."""
    n, channels, rows, cols = descriptors.shape
    gates = excite(block, descriptors.permute(0, 2, 3, 1).reshape(n * rows * cols, channels, 1, 1))
    return gates.reshape(n, rows, cols, channels).permute(0, 3, 1, 2)
