"""Pictures of a streaming network: what layers hold, who works and who waits, buffers over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import TiledSEError
from ..files import written_whole
from ..stream.flow import Held
from ..stream.simulator import Simulation
from ..stream.trace_file import busy_spans, rows_over_time

_COLOURS = {"gate": "tab:red", "shortcut": "tab:blue", "rows": "tab:gray"}


def _figure(width: float, height: float, rows: int = 1) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TiledSEError(
            "a drawing needs matplotlib; install it with: pip install 'tiledse[plot]'"
        ) from error
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, 1)


def _save(figure: Any, path: Path) -> None:
    try:
        with written_whole(path) as part:
            figure.savefig(part, dpi=120)
    except ValueError as error:  # matplotlib's word for an ending that it does not know
        raise TiledSEError(f"cannot draw {path}: {error}; use .png, .svg or .pdf") from error


def draw_held(held: list[Held], path: Path, title: str) -> None:
    """A bar for each layer: elements held, coloured by what they wait for.

    Raises:
        TiledSEError: the file cannot be written.
    """
    figure, axes = _figure(9, 4)
    for kind, colour in _COLOURS.items():
        bars = [(i, item.elements) for i, item in enumerate(held) if item.kind == kind]
        if bars:
            axes.bar(*zip(*bars), color=colour, label=f"{kind}: {sum(b for _, b in bars):,}", width=1.0)
    axes.set(xlabel="layer, in the order of the network", ylabel="elements held", title=title)
    axes.legend()
    _save(figure, path)


def draw_pipeline(simulations: dict[str, Simulation], path: Path, title: str) -> None:
    """For each simulation a timeline (work drawn, waits left white) and under it what gates hold over time.

    Raises:
        TiledSEError: the file cannot be written.
    """
    figure, axes = _figure(10, 5.5 * len(simulations), 2 * len(simulations))
    end = max(simulation.cycles for simulation in simulations.values())
    for place, (name, simulation) in enumerate(simulations.items()):
        above, below = axes[2 * place], axes[2 * place + 1]
        for index, stage in enumerate(simulation.stages):
            begins, ends = busy_spans(simulation.done[index], stage.cycles_per_row)
            spans = list(zip(begins.tolist(), (ends - begins).tolist()))
            above.broken_barh(
                spans, (index, 1), color="tab:red" if stage.kind in ("gate", "squeeze") else "tab:gray"
            )
            if stage.block is not None:
                times, rows = rows_over_time(simulation, index)
                below.step(times, rows * (stage.peak // max(1, stage.peak_rows)), where="post", linewidth=0.8)
        above.set(xlim=(0, end), ylabel="stage", title=f"{title}, {name}: {simulation.cycles:,} cycles")
        above.invert_yaxis()
        below.set(xlim=(0, end), xlabel="cycle", ylabel="elements in gates' FIFOs")
    _save(figure, path)
