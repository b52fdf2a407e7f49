"""The front of a search as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..choose.budget import gate_buffer
from ..choose.search import Found, Point
from ..tile import Tile
from .figures import as_drawn, figure


def front_table(found: Found, name: str) -> list[Any]:
    """Tables of the points and of the chosen plan."""
    from rich.table import Table

    labelled, whole = bool(found.metric), found.order == "pipeline"
    counted = "pipeline: elements of all FIFOs at their smallest; gates" if whole else "buffer"
    table = Table(
        title=f"{name}: {found.choices} choices that no other beats, measured on {found.n} images",
        caption=f"{counted}: elements that the gates hold (section 3.2); "
        "divergence: from plain SE, mean over the images"
        + (f"; drop of {found.metric} in percentage points with its 95 % interval" if labelled else ""),
    )
    table.add_column("")
    table.add_column("pipeline" if whole else "buffer", justify="right")
    if whole:
        table.add_column("gates", justify="right")
    table.add_column("divergence", justify="right")
    if labelled:
        table.add_column("drop", justify="right")
        table.add_column("95 %", justify="right")
    table.add_column("tiles")
    for point in found.points:
        m = point.measured
        row = [
            "chosen" if point.plan == found.chosen.plan and point.kind == found.chosen.kind else point.kind,
            f"{point.buffer:,}",
            *([f"{gate_buffer(point.plan):,}"] if whole else []),
            f"{m.divergence:.4g}",
        ]
        if labelled:
            low, high = m.drop_ci95 or (float("nan"), float("nan"))
            row += [f"{m.drop or 0:.2f}", f"{low:.2f} to {high:.2f}"]
        table.add_row(*row, _tiles(point))
    return [table]


def _tiles(point: Point) -> str:
    tiles = [str(tile) for tile in point.plan.tiles]
    text = tiles[0] if len(set(tiles)) == 1 else " ".join(tiles)
    return text + (" (calibrated)" if point.calibrated else "")


def draw_front(found: Found, path: str | Path, name: str = "") -> None:
    """Draw buffer against drop with its interval, or against divergence where there are no labels.

    Args:
        found: What a search gave.
        path: A name that ends in .png, .svg or .pdf.
        name: Of the network, for the title.

    Raises:
        TiledSEError: another ending, matplotlib is not installed, or the file cannot be written.
    """
    with figure(path, 7.5, 4.8, {"savefig.dpi": 120}) as made:
        _draw(made.subplots(), found, name)


def _draw(axes: Any, found: Found, name: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    labelled = bool(found.metric)

    def level(point: Point) -> float:
        return (point.measured.drop or 0.0) if labelled else point.measured.divergence

    for kind, calibrated, mark, colour, label in _SERIES:
        points = [p for p in found.points if (p.kind, p.calibrated) == ("front", calibrated)]
        if kind != "front":
            points = [p for p in found.points if p.kind == "uniform" and p.calibrated == calibrated]
            points = [p for p in points if _kind(p.plan.tiles[0]) == kind]
        if not points:
            continue
        x, y = [p.buffer for p in points], [level(p) for p in points]
        axes.plot(x, y, mark, color=colour, label=label, markersize=6, fillstyle=_FILLS[calibrated], zorder=3)
        bounds = [p.measured.drop_ci95 for p in points]
        if kind == "front" and labelled and all(b is not None for b in bounds):
            low, high = zip(*(b for b in bounds if b is not None), strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    _name_columns(axes, [p for p in found.points if p.kind == "uniform"], level)
    chosen = found.chosen
    axes.plot(
        [chosen.buffer], [level(chosen)], "*", color="black", markersize=15, zorder=4,
        label=f"chosen: {chosen.buffer:,}{', calibrated' * chosen.calibrated}", fillstyle=_FILLS[chosen.calibrated],
    )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if not labelled:
        # Divergences span orders of magnitude; 0, the whole map, stays in sight.
        small = max(level(p) for p in found.points) / 100 or 1
        axes.set_yscale("symlog", linthresh=small)
        axes.set_ylim(bottom=-small / 4)
    axes.set_xlabel(f"{'pipeline' if found.order == 'pipeline' else 'gate'} buffer, elements")
    axes.set_ylabel(
        f"drop of {as_drawn(found.metric)}, percentage points (bands: 95 %)"
        if labelled
        else "divergence from SE"
    )
    axes.set_title(f"{as_drawn(name)}{', ' if name else ''}{found.n} images", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _short(elements: float) -> str:
    return f"{elements / 1e6:g}M" if elements >= 1e6 else f"{elements / 1e3:g}k"


# Points of a kind, calibrated or not: mark, colour and name.
_SERIES = (
    ("front", False, "o-", "tab:blue", "searched"),
    ("front", True, "o--", "tab:orange", "searched, calibrated"),
    ("tiles", False, "s", "tab:green", "one kxW for all blocks"),
    ("tiles", True, "s", "tab:green", "one kxW, calibrated"),
    ("running", False, "^", "tab:red", "one kxW:running for all blocks"),
    ("running", True, "^", "tab:red", "one kxW:running, calibrated"),
    ("sliding", False, "v", "tab:purple", "one sliding tile for all blocks (look-ahead: +L)"),
    ("sliding", True, "v", "tab:purple", "one sliding tile, calibrated"),
)
_FILLS: dict[bool, Any] = {False: "full", True: "none"}


def _kind(tile: Tile) -> str:
    """Which series one tile for all blocks is in."""
    if not tile.slides:
        return "tiles"
    return "sliding" if tile.ahead or tile.above is not None else "running"


def _name_columns(axes: Any, points: list[Point], level: Any) -> None:
    """Write each height of strips, or their look-ahead, once, over the highest of the points that have it."""
    highest: dict[str, Point] = {}
    for point in points:
        size, _, squeeze = str(point.plan.tiles[0]).partition(":")
        text = squeeze.removeprefix("running").removeprefix("window") or size
        if text not in highest or level(point) > level(highest[text]):
            highest[text] = point
    for text, point in highest.items():
        axes.annotate(
            text, (point.buffer, level(point)), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9
        )  # fmt: skip
