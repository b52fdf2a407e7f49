"""SEBlock: one squeeze-and-excite block of a network; and what else was found out about the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from .errors import TiledSEError
from .notation import AXES, shape
from .tile import Tile


@dataclass(frozen=True)
class SEBlock:
    """One squeeze-and-excite block, at one input size of its network.

    Args:
        name: Its name in the network (``nn.Module.named_modules``, or the pool's node in ONNX); of SE that is written
            inline, in the network with its blocks as modules: ``_blocks.3.inline_se``.
        channels: C, channels of the map that is gated.
        reduced: Width between the two layers of the excitation; None where it has one layer (ESE).
        height: H, rows of the map: its first axis behind the channels, T of sound, D of volumes and video.
        width: W, columns of the map: all other axes together, 1 of sound, H * W of volumes.
        dialect: Which spelling of SE it is, such as ``timm.SEModule``.
        excite_macs: Multiply-adds of the excitation for one descriptor, biases included. Left out, it
            is that of two dense layers with biases (of one, without ``reduced``).
        calls: How often an image meets it; each call holds its map and runs the excitation.
        sides: The axes of the map behind the channels: (T,), (H, W) or (D, H, W); (H, W), where it is left out.

    Raises:
        TiledSEError: ``sides`` are not those of height and width.

    Example:
        >>> SEBlock("s1.b1.se", 64, 8, 56, 56, "timm.SEModule").excite_macs
        1096
    """

    name: str
    channels: int
    reduced: int | None
    height: int
    width: int
    dialect: str
    excite_macs: int = field(default=-1)
    calls: int = 1
    sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.excite_macs < 0:
            c, r = self.channels, self.reduced
            object.__setattr__(self, "excite_macs", c * c + c if r is None else 2 * c * r + c + r)
        sides = self.sides or (self.height, self.width)
        object.__setattr__(self, "sides", sides)
        if len(sides) not in AXES or (sides[0], prod(sides[1:])) != (self.height, self.width):
            raise TiledSEError(
                f"block '{self.name}': a map of {self.height} rows and {self.width} columns has no sides {sides}"
            )

    def of_size(self, sides: Sequence[int]) -> SEBlock:
        """The block on maps of another size.

        Args:
            sides: The axes of the map behind the channels.

        Example:
            >>> SEBlock("se", 64, 8, 56, 56, "timm.SEModule").of_size((90, 56)).height
            90
        """
        return replace(self, height=sides[0], width=prod(sides[1:]), sides=tuple(sides))

    @property
    def axes(self) -> int:
        """Axes of its map behind the channels: 1 of sound, 2 of images, 3 of volumes and video."""
        return len(self.sides)

    def tile(self, tile: Tile) -> Tile:
        """A tile as it is written for this block's maps; ``HxW`` is plain SE on all of them.

        Raises:
            TiledSEError: it is one for maps of another number of axes; says the form for this one.

        Example:
            >>> block = SEBlock("se", 64, 8, 100, 1, "traced", sides=(100,))
            >>> block.tile(Tile.parse("HxW"))
            Tile.parse('T')
            >>> block.tile(Tile.parse("7xW"))
            Traceback (most recent call last):
            tiledse.errors.TiledSEError: block 'se' has maps of (C, T), and 7xW is a tile of (C, H, W); write 7xT
        """
        if tile.axes == self.axes:
            return tile
        if not (tile.whole and tile.axes == 2):
            like = tile.on(self.axes) if tile.width is None else Tile(7, None, axes=self.axes)
            raise TiledSEError(
                f"block '{self.name}' has maps of {shape(self.axes)}, and {tile} is a tile of {shape(tile.axes)}; "
                f"write {like}"
            )
        return tile.on(self.axes)


@dataclass(frozen=True)
class NearMiss:
    """A place that pools the whole map and yet is no SE block, with the reason.

    Args:
        name: What pools.
        reason: Why it is none.
        gates: Whether it gates the map that it pools, so that it stays as it is where others are given tiles.
    """

    name: str
    reason: str
    gates: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"name": self.name, "reason": self.reason, **({"gates": True} if self.gates else {})}


def no_block(misses: Sequence[NearMiss]) -> str:
    """What to say of a network without SE blocks: the first that is one and takes no tiles, with its reason."""
    first = next((miss for miss in misses if miss.gates), None)
    why = "" if first is None else f" that takes tiles: '{first.name}': {first.reason}"
    return (
        f"the network has no squeeze-and-excite block{why} ({len(misses)} near misses; `tiledse find` gives the "
        "reasons)"
    )


@dataclass(frozen=True)
class Totals:
    """What was counted over the whole network with plain SE at the plan's input size, for one image.

    Args:
        params: Parameters.
        macs: Multiply-adds of convolutions and matrix products, plus one per bias and output.
        uncounted: Operators that the count does not cover, by name.
    """

    params: int
    macs: int
    uncounted: tuple[str, ...] = ()
