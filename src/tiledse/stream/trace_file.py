"""A simulated run as a trace file for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..documents import write_json
from ..files import written_whole
from .simulator import Simulation
from .sizes import occupancy


def busy_spans(done: np.ndarray, cycles: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and end of each stretch in which a stage makes row after row without a pause."""
    begins = done - cycles
    first = np.concatenate([[True], begins[1:] > done[:-1]])
    last = np.concatenate([first[1:], [True]])
    return begins[first], done[last]


def rows_over_time(simulation: Simulation, index: int) -> tuple[np.ndarray, np.ndarray]:
    """The cycles at which the number of rows in a stage's FIFO changes, and the number from then on."""
    begins, freed = occupancy(simulation.pipeline, index, list(simulation.done))
    times = np.concatenate([begins, freed])
    steps = np.concatenate([np.ones(len(begins), int), -np.ones(len(freed), int)])
    order = np.lexsort((steps, times))  # a row that is freed as another begins makes room for it
    return times[order], np.cumsum(steps[order])


def write_trace(simulation: Simulation, path: str | Path) -> None:
    """Write who works when, and the elements in each gate's FIFO; one cycle is drawn as a microsecond.

    Raises:
        TiledSEError: the file cannot be written.
    """
    with written_whole(path) as part:
        part.write_text(
            write_json({"displayTimeUnit": "ms", "traceEvents": list(_events(simulation))}), "utf-8"
        )


def _events(simulation: Simulation) -> Iterator[dict[str, Any]]:
    for index, stage in enumerate(simulation.stages):
        yield {"ph": "M", "pid": 1, "tid": index, "name": "thread_name", "args": {"name": stage.name}}
        for begin, end in zip(*busy_spans(simulation.done[index], stage.cycles_per_row)):
            yield {
                "ph": "X", "pid": 1, "tid": index, "name": stage.name, "cat": stage.kind,
                "ts": int(begin), "dur": int(end - begin),
            }  # fmt: skip
        if stage.block is not None:
            row = stage.peak // max(1, stage.peak_rows)
            for time, rows in zip(*rows_over_time(simulation, index)):
                yield {
                    "ph": "C", "pid": 1, "name": f"gate {stage.block}", "ts": int(time),
                    "args": {"elements": int(rows) * row},
                }  # fmt: skip
