"""Pictures of a streaming network: what layers hold, who works and who waits, buffers over time."""

from __future__ import annotations

from pathlib import Path

from ..stream.flow import Held
from ..stream.simulator import Simulation
from ..stream.trace_file import busy_spans, rows_over_time
from .figures import BLUE, VERMILLION, as_drawn, figure

_STYLE = {"savefig.dpi": 120}
_COLOURS = {"gate": VERMILLION, "shortcut": BLUE, "rows": "0.6"}


def draw_held(held: list[Held], path: Path, title: str) -> None:
    """A bar for each layer: elements held, coloured by what they wait for.

    Raises:
        TiledSEError: the file cannot be written.
    """
    with figure(path, 9, 4, _STYLE) as made:
        axes = made.subplots()
        for kind, colour in _COLOURS.items():
            bars = [(i, item.elements) for i, item in enumerate(held) if item.kind == kind]
            if bars:
                axes.bar(*zip(*bars), color=colour, label=f"{kind}: {sum(b for _, b in bars):,}", width=1.0)
        axes.set(xlabel="layer, in the order of the network", ylabel="elements held", title=as_drawn(title))
        axes.legend()


def draw_pipeline(simulations: dict[str, Simulation], path: Path, title: str) -> None:
    """For each simulation a timeline (work drawn, waits left white) and under it what gates hold over time.

    Raises:
        TiledSEError: the file cannot be written.
    """
    end = max(simulation.cycles for simulation in simulations.values())
    with figure(path, 10, 5.5 * len(simulations), _STYLE) as made:
        axes = made.subplots(2 * len(simulations), 1)
        for place, (name, simulation) in enumerate(simulations.items()):
            above, below = axes[2 * place], axes[2 * place + 1]
            for index, stage in enumerate(simulation.stages):
                begins, ends = busy_spans(simulation.done[index], stage.cycles_per_row)
                spans = list(zip(begins.tolist(), (ends - begins).tolist()))
                above.broken_barh(
                    spans, (index, 1), color=VERMILLION if stage.kind in ("gate", "squeeze") else "0.6"
                )
                if stage.block is not None:
                    times, rows = rows_over_time(simulation, index)
                    below.step(
                        times, rows * (stage.peak // max(1, stage.peak_rows)), where="post", linewidth=0.8
                    )
            above.set(
                xlim=(0, end),
                ylabel="stage",
                title=f"{as_drawn(title)}, {name}: {simulation.cycles:,} cycles",
            )
            above.invert_yaxis()
            below.set(xlim=(0, end), xlabel="cycle", ylabel="elements in gates' FIFOs")
