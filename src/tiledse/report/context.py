"""Tables on local context: correlation, sensitivity, sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ..context.agreement import Correlation
from ..context.sensitivity import Sensitivity
from .text import digits


def _table(title: str, caption: str, columns: Sequence[str], left: int) -> Table:
    """A table whose first ``left`` columns are text."""
    table = Table(
        box=box.SIMPLE_HEAD, title=title, caption=caption, title_justify="left", caption_justify="left"
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def _r(value: float) -> str:
    return f"{value:.3f}" if value == value else "-"


def correlation_table(found: Correlation, model: str) -> Table:
    """One row a block and tile."""
    slopes = [slope for slope in found.exponents().values() if slope is not None]
    caption = [
        "r: Pearson's correlation of global and tile values over all images, channels and tiles; centre: the centre "
        "half of the tiles;",
        "channel: median over channels of the correlation within the channel; -: nothing varies",
        "delta: root mean square of tile mean - global mean; over chance: relative to what independent elements would "
        "give, sqrt(sigma^2 * (1/n - 1/N))",
    ]
    if slopes:
        mean = sum(slopes) / len(slopes)
        caption.append(
            f"delta falls with the tile as (1/n - 1/N)^{mean:.2f}, mean over blocks; 0.5 were elements independent"
        )
    columns = (
        "block",
        "tile",
        "tiles",
        "squeeze r",
        "centre",
        "channel",
        "excite r",
        "centre",
        "channel",
        "delta",
        "over chance",
    )
    table = _table(f"{model}: {found.n} images", "\n".join(caption), columns, 2)
    for entry in found.blocks:
        s, e = entry.squeeze, entry.excite
        table.add_row(
            entry.block.name,
            str(entry.tile),
            str(len(entry.centre)),
            *map(_r, (s.all, s.centre, s.channel, e.all, e.centre, e.channel)),
            f"{entry.delta:.4f}",
            _r(entry.ratio),
        )
    return table


def sensitivity_tables(found: Sensitivity, model: str) -> list[Table | str]:
    """Blocks, stages and all, a table for each tile; then whether drops add up."""
    base = ", ".join(f"{key} {value:.2f} %" for key, value in list(found.se.items())[:2])
    caption = [f"divergence: {found.divergence_name}, mean over images"]
    if found.metric:
        caption.insert(
            0, f"drop: of {found.metric}, in percentage points, with its 95 % interval; lost, gained: images"
        )
    if found.unshared:
        caption.append(f"run whole, nothing could be shared before: {', '.join(found.unshared)}")
    columns = ("replaced", "blocks", "drop", "95 % interval", "lost", "gained", "divergence")
    parts: list[Table | str] = []
    for tile in dict.fromkeys(r.tile for r in found.replacements):
        title = f"{model}, {tile}: {found.n} images" + (f", SE {base}" if base else "")
        table = _table(title, "\n".join(caption), columns, 1)
        kind = "block"
        for r in found.replacements:
            if r.tile != tile:
                continue
            if r.kind != kind:
                table.add_section()
                kind = r.kind
            name = f"stage {r.name}" if r.kind == "stage" else r.name
            p = r.paired
            cells = ["-"] * 4 if p is None else [
                f"{p.drop:.2f}", f"{p.drop_ci95[0]:.2f} to {p.drop_ci95[1]:.2f}", str(p.lost), str(p.gained)
            ]  # fmt: skip
            table.add_row(name, f"{r.changed} of {r.blocks}", *cells, f"{r.divergence:.2g}")
        parts.append(table)
    for a in found.additivity:
        text = f"{a.tile}: drops of single {a.kind}s sum to {a.summed:.2f}, all together {a.together:.2f}; "
        text += f"excess {a.excess:.2f}"
        if a.excess_ci95 is not None:
            text += f" (95 % interval {a.excess_ci95[0]:.2f} to {a.excess_ci95[1]:.2f})"
        parts.append(text)
    return parts


def sweep_table(rows: Sequence[dict[str, str]]) -> Table:
    """Table 2's columns with weights as they are, for each tile of a sweep."""
    metrics = ", ".join(dict.fromkeys(row["metric"] for row in rows))
    caption = (
        f"SE, TSE: {metrics} in percent; drop in percentage points with its 95 % interval; "
        "buffer: elements in tile order"
    )
    columns = (
        "model",
        "tile",
        "n",
        "SE",
        "TSE",
        "drop",
        "95 % interval",
        "lost",
        "gained",
        "SE buffer",
        "buffer",
    )
    table = _table(f"{len(rows)} results", caption, columns, 2)
    for row in rows:
        table.add_row(
            row["model"], row["tile"], row["n"], f"{float(row['se']):.2f}", f"{float(row['tse']):.2f}",
            f"{float(row['drop']):.2f}", f"{float(row['drop_low']):.2f} to {float(row['drop_high']):.2f}",
            row["lost"], row["gained"], digits(int(row["se_buffer"])), digits(int(row["buffer"])),
        )  # fmt: skip
    return table
