"""Cost: parameters, multiply-adds and pipeline buffer of a plan, in closed form.

A plan is all that is needed: ``find`` has counted the network with plain SE, and a tile changes nothing but
how often the excitation runs and how much of the map its gate holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plan import Plan


@dataclass(frozen=True)
class SECost:
    """The network with plain SE.

    Args:
        params: Parameters; None where the plan has no totals of its network.
        macs: Multiply-adds, biases included; None likewise.
        buffer: Elements that the gates hold.
    """

    params: int | None
    macs: int | None
    buffer: int


@dataclass(frozen=True)
class TSECost:
    """The network with the tiles of the plan.

    Args:
        params: Parameters: those of SE, a tile adds none.
        macs: Multiply-adds, biases included; None where the plan has no totals of its network.
        buffer: Elements that the gates hold, tiles arriving one after the other (the paper's figure).
        buffer_row_order: Elements that the gates hold where maps arrive row by row.
        running_sums: Sums of rows that ``running`` (one a channel) and ``window`` strips keep; not counted as buffer.
        state: Elements that ``previous`` keeps from frame to frame; not counted as buffer.
    """

    params: int | None
    macs: int | None
    buffer: int
    buffer_row_order: int
    running_sums: int
    state: int


@dataclass(frozen=True)
class BlockCost:
    """One block: its map, its tile, and what each costs with SE and with the tile, over all of its calls.

    Args:
        name: Its name in the network.
        channels: C.
        height: H.
        width: W.
        sides: The axes of the map behind the channels: (H, W), (T,) of sound, (D, H, W) of volumes and video.
        tile: The tile, as text.
        tiles: Gates a channel gets; each costs one excitation.
        se_buffer: Elements held with SE: H * W * C.
        buffer: Elements held, in tile order.
        buffer_row_order: Elements held, in row order.
        running_sums: Sums of rows kept by ``running`` and ``window``, else 0.
        state: Elements kept from frame to frame by ``previous``, else 0.
        se_macs: Multiply-adds of the excitation with SE.
        macs: Multiply-adds of the excitations of all tiles.
    """

    name: str
    channels: int
    height: int
    width: int
    sides: tuple[int, ...]
    tile: str
    tiles: int
    se_buffer: int
    buffer: int
    buffer_row_order: int
    running_sums: int
    state: int
    se_macs: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """What a plan costs. Raw integers: parameters, MACs (one image), buffer in elements.

    Args:
        input_size: (C, H, W) of the image; as `Plan.input_size`.
        se: The network with plain SE.
        tse: The network with the tiles of the plan.
        blocks: Each block.
        uncounted: Operators of the network that its MACs do not cover.

    Example:
        >>> from tiledse import Plan, SEBlock, Tile
        >>> block = SEBlock("se", 64, 16, 56, 56, "timm.SEModule")
        >>> plan = Plan((block,), (Tile.parse("7xW"),), (3, 224, 224))
        >>> cost(plan).to_dict()["tse"]["buffer"]
        25088
    """

    input_size: tuple[int, ...]
    se: SECost
    tse: TSECost
    blocks: tuple[BlockCost, ...]
    uncounted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The cost as JSON types."""
        return {
            "input": list(self.input_size),
            "se": dict(vars(self.se)),
            "tse": dict(vars(self.tse)),
            "blocks": [{**vars(block), "sides": list(block.sides)} for block in self.blocks],
            "uncounted": list(self.uncounted),
        }

    def __str__(self) -> str:
        saved = 100 * (1 - self.tse.buffer / self.se.buffer) if self.se.buffer else 0.0
        lines = [
            f"{len(self.blocks)} SE blocks at input {'x'.join(map(str, self.input_size))}",
            f"{'':18}{'SE':>18}{'TSE':>18}",
            f"{'parameters':18}{_digits(self.se.params):>18}{_digits(self.tse.params):>18}",
            f"{'MACs':18}{_digits(self.se.macs):>18}{_digits(self.tse.macs):>18}",
            f"{'buffer, elements':18}{_digits(self.se.buffer):>18}{_digits(self.tse.buffer):>18}"
            f"  ({saved:.1f} % less)",
            f"{'  row by row':18}{_digits(self.se.buffer):>18}{_digits(self.tse.buffer_row_order):>18}",
        ]
        if self.tse.running_sums:
            lines.append(f"{'  sums of rows':18}{0:>18}{_digits(self.tse.running_sums):>18}")
        if self.tse.state:
            lines.append(f"{'  kept for a frame':18}{0:>18}{_digits(self.tse.state):>18}")
        if self.uncounted:
            lines.append(f"MACs not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def cost(plan: Plan) -> Cost:
    """Parameters, MACs and buffer of a plan, with SE and with its tiles.

    MACs are multiply-adds of convolutions and matrix products plus one per bias and output; a block's
    excitation runs once a tile (section 3.2, "Compute"). Buffer is min(h, H) * min(w, W) * C elements a
    block in tile order (section 3.2, "Buffering"); in row order it is what a device holds to which maps
    come row by row.

    Args:
        plan: The plan; ``find`` gave it the totals of its network. Without those, ``params`` and ``macs`` are
            None and the blocks are still counted.

    Returns:
        The cost, for one image of the plan's input size.

    Example:
        >>> import timm, tiledse as ts
        >>> plan = ts.find(timm.create_model("regnety_008"), (3, 224, 224))
        >>> print(cost(plan.with_tile("7xW")))
        14 SE blocks at input 3x224x224
                                          SE               TSE
        parameters                 6,263,168         6,263,168
        MACs                     797,183,328       797,635,864
        buffer, elements           1,078,784           426,496  (60.5 % less)
          row by row               1,078,784           426,496
    """
    blocks = []
    for block, tile in plan:
        size = (block.channels, block.height, block.width)
        tiles, calls = tile.tiles(block.height, block.width), block.calls
        blocks.append(
            BlockCost(
                block.name,
                *size,
                sides=block.sides,
                tile=str(tile),
                tiles=tiles,
                se_buffer=calls * block.channels * block.height * block.width,
                buffer=calls * tile.buffer(*size),
                buffer_row_order=calls * tile.buffer_row_order(*size),
                running_sums=calls * block.channels * tile.row_sums(block.height),
                state=calls * block.channels * tile.state(block.height),
                se_macs=calls * block.excite_macs,
                macs=calls * tiles * block.excite_macs,
            )
        )
    params = macs = more = None
    uncounted: tuple[str, ...] = ()
    if plan.network is not None:
        params, macs, uncounted = plan.network.params, plan.network.macs, plan.network.uncounted
        more = macs + sum(block.macs - block.se_macs for block in blocks)
    se = SECost(params, macs, sum(block.se_buffer for block in blocks))
    tse = TSECost(
        params,
        more,
        sum(block.buffer for block in blocks),
        sum(block.buffer_row_order for block in blocks),
        sum(block.running_sums for block in blocks),
        sum(block.state for block in blocks),
    )
    return Cost(plan.input_size, se, tse, tuple(blocks), uncounted)


def _digits(number: int | None) -> str:
    return "not counted" if number is None else f"{number:,}"
