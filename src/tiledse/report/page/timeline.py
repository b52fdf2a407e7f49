"""A simulated pipeline as a film: at each of some hundred instants, what each stage does and what its FIFO holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...stream.simulator import Simulation, ready_times
from ...stream.trace_file import rows_over_time

# What a stage does: nothing has come yet, it makes a row, it waits for rows, it waits for room, its frame is done.
IDLE, WORKS, STARVED, BLOCKED, DONE = range(5)


def timelines(names: Sequence[str], simulations: Sequence[Simulation], instants: int) -> dict[str, Any]:
    """Pipelines on one scale of time, as JSON types.

    Args:
        names: What each is called.
        simulations: Of one network on one hardware.
        instants: At how many times, evenly spread, the stages are looked at.

    Returns:
        ``end`` (cycles), ``instants``, and for each pipeline its stages. ``states`` and ``rows`` are run
        lengths: value, count, value, count, ...
    """
    end = max(simulation.cycles for simulation in simulations)
    times = (np.arange(instants) + 0.5) * (end / instants)
    return {
        "end": int(end),
        "instants": instants,
        "pipelines": [
            _pipeline(name, simulation, times) for name, simulation in zip(names, simulations, strict=True)
        ],
    }


def _pipeline(name: str, simulation: Simulation, times: np.ndarray) -> dict[str, Any]:
    gates, everything = np.zeros(len(times), np.int64), np.zeros(len(times), np.int64)
    stages = []
    for index, stage in enumerate(simulation.stages):
        rows = rows_at(simulation, index, times)
        elements = simulation.pipeline.stages[index].row_elements
        everything += rows * elements
        if stage.block is not None:
            gates += rows * elements
        stages.append(
            {
                "name": stage.name,
                "kind": stage.kind,
                "gate": stage.block,
                "row": elements,
                "room": stage.fifo_rows,
                "states": runs(states_at(simulation, index, times)),
                "rows": runs(rows),
            }
        )
    return {
        "name": name,
        "cycles": simulation.cycles,
        "first": simulation.first_output_cycle,
        "period": simulation.period_cycles,
        "stalls": simulation.stall_cycles,
        "fifo": simulation.fifo,
        "held": simulation.buffer,
        "gates": gates.tolist(),
        "all": everything.tolist(),
        "stages": stages,
    }


def states_at(simulation: Simulation, index: int, times: np.ndarray) -> np.ndarray:
    """What a stage does at each of some times."""
    done = simulation.done[index]
    first, ready = ready_times(simulation.pipeline, index, list(simulation.done))
    at = np.searchsorted(done, times, side="right")  # rows that are made
    row = np.minimum(at, len(done) - 1)
    begins = done[row] - simulation.pipeline.stages[index].cycles
    states = np.where(times >= begins, WORKS, np.where(times < ready[row], STARVED, BLOCKED))
    states = np.where(times < first, IDLE, states)
    return np.asarray(np.where(at == len(done), DONE, states))


def rows_at(simulation: Simulation, index: int, times: np.ndarray) -> np.ndarray:
    """Rows in a stage's FIFO at each of some times."""
    changes, counts = rows_over_time(simulation, index)
    at = np.searchsorted(changes, times, side="right") - 1
    return np.asarray(np.where(at >= 0, counts[np.maximum(at, 0)], 0))


def runs(values: np.ndarray) -> list[int]:
    """Run lengths: value, count, value, count, ...

    Example:
        >>> runs(np.array([0, 0, 0, 7, 7]))
        [0, 3, 7, 2]
    """
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    lengths = np.diff(np.append(starts, len(values)))
    return np.stack([values[starts], lengths], 1).ravel().tolist()
