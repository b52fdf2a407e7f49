"""The front of a search as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..choose.budget import gate_buffer
from ..choose.search import Found, Point
from ..errors import TiledSEError
from ..files import written_whole


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


def draw_front(found: Found, path: str | Path) -> None:
    """Draw buffer against drop, or against divergence where there are no labels.

    Raises:
        TiledSEError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TiledSEError(
            "--plot needs the package matplotlib; install it with: pip install matplotlib"
        ) from error
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise TiledSEError(f"cannot draw {path}: expected a name that ends in .png, .svg or .pdf")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    labelled = bool(found.metric)

    def height(point: Point) -> float:
        return (point.measured.drop or 0.0) if labelled else point.measured.divergence

    for kind, calibrated, mark, label in (
        ("front", False, "o-", "searched"),
        ("front", True, "s--", "searched, calibrated"),
        ("uniform", False, "x", "one tile for all blocks"),
        ("uniform", True, "+", "one tile for all blocks, calibrated"),
    ):
        points = [p for p in found.points if (p.kind, p.calibrated) == (kind, calibrated)]
        if points:
            axes.plot(
                [p.buffer for p in points], [height(p) for p in points], mark, label=label, markersize=7
            )
        if kind == "uniform":
            for p in points:
                axes.annotate(
                    str(p.plan.tiles[0]), (p.buffer, height(p)), xytext=(5, 5), textcoords="offset points"
                )
    axes.plot(
        [found.chosen.buffer], [height(found.chosen)], "*", color="black", markersize=14, label="chosen"
    )
    axes.set_xscale("log")
    axes.set_xlabel(f"{'pipeline' if found.order == 'pipeline' else 'gate'} buffer, elements")
    axes.set_ylabel(f"drop of {found.metric}, percentage points" if labelled else "divergence from SE")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(path) as part:
        figure.savefig(part)
