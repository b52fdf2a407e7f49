"""Tables for people: what the verbs print where no ``--json`` was asked for."""

from __future__ import annotations

from rich import box
from rich.table import Table

from ..cost import Cost
from ..notation import AXES

BUFFER_UNIT = "buffer: elements held by the gates until their tile is complete, in tile order"
MACS_UNIT = "MACs: multiply-adds of convolutions and linear layers, and one per bias; one "
_INPUT = {2: "sound", 3: "image", 4: "clip"}


def cost_table(cost: Cost) -> Table:
    """A cost as a table: a row a block, then the network; units in the footer.

    Example:
        >>> from tiledse import Plan, SEBlock, Tile, cost
        >>> block = SEBlock("se", 64, 16, 56, 56, "timm.SEModule")
        >>> plan = Plan((block,), (Tile.parse("7xW"),), (3, 224, 224))
        >>> [list(column.cells)[0] for column in cost_table(cost(plan)).columns][:6]
        ['se', '64x56x56', '7xW', '8', '200,704', '25,088']
    """
    size = "x".join(map(str, cost.input_size))
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{len(cost.blocks)} SE blocks at input {size}", title_justify="left"
    )
    table.caption = "\n".join(_footer(cost))
    table.caption_justify = "left"
    table.add_column("block", no_wrap=True)
    kinds = {len(block.sides) for block in cost.blocks}
    table.add_column(
        f"map Cx{'x'.join(AXES[kinds.pop()])}" if len(kinds) == 1 else "map", justify="right", no_wrap=True
    )
    table.add_column("tile", no_wrap=True)
    for name in ("tiles", "SE buffer", "buffer", "row order", "SE MACs", "MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for block in cost.blocks:
        table.add_row(
            block.name,
            "x".join(map(str, (block.channels, *block.sides))),
            block.tile,
            *map(
                digits,
                (
                    block.tiles,
                    block.se_buffer,
                    block.buffer,
                    block.buffer_row_order,
                    block.se_macs,
                    block.macs,
                ),
            ),
        )
    table.add_section()
    table.add_row(
        "the network",
        "",
        "",
        "",
        *map(
            digits,
            (cost.se.buffer, cost.tse.buffer, cost.tse.buffer_row_order, cost.se.macs, cost.tse.macs),
        ),
        style="bold",
    )
    return table


def _footer(cost: Cost) -> list[str]:
    lines = []
    if cost.se.buffer:
        lines.append(
            f"{digits(cost.se.params)} parameters with SE and with TSE; "
            f"buffer {100 * (1 - cost.tse.buffer / cost.se.buffer):.1f} % less than SE"
        )
    lines += [
        f"{BUFFER_UNIT}; row order: where maps arrive row by row",
        MACS_UNIT + _INPUT[len(cost.input_size)],
    ]
    if cost.tse.state:
        kept = f"{digits(cost.tse.state)} elements ({digits(4 * cost.tse.state)} bytes in float32)"
        lines.append(
            f"blocks that see the previous frame keep {kept} from frame to frame; the first frame of a stream has "
            "none, and is held as with running rows"
        )
    if cost.tse.running_sums:
        lines.append(
            f"strips that see rows above keep {digits(cost.tse.running_sums)} sums of rows besides, not counted as "
            "buffer"
        )
    if cost.uncounted:
        lines.append(f"MACs do not cover: {', '.join(cost.uncounted)}")
    return lines


def digits(number: int | None) -> str:
    """A raw integer with thousands separators.

    Example:
        >>> digits(1071616), digits(None)
        ('1,071,616', 'not counted')
    """
    return "not counted" if number is None else f"{number:,}"
