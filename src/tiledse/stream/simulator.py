"""Simulate: the rows of a network on a pipelined accelerator, cycle by cycle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import TiledSEError
from ..plan import Plan
from .building import build_graph
from .graph import RowGraph
from .hardware import Hardware
from .heights import sized_plan
from .row_times import jointly_minimum_rows, row_times
from .sharing import SharedRun, Sharing, share
from .sizes import most_rows, occupancy, unhindered_rows
from .stages import Pipeline, build_pipeline

Fifos = Literal["unhindered", "minimum"]


@dataclass(frozen=True)
class StageResult:
    """One stage of a simulated pipeline.

    Args:
        name: The layer's name; the first is the image.
        kind: What it is in rows.
        rows: Rows it makes a frame.
        cycles_per_row: Cycles a row.
        busy_cycles: Cycles at work, all frames.
        starved_cycles: Cycles in which it waited for rows, from when the first of its inputs was there.
        blocked_cycles: Cycles in which it waited for room in its FIFO, or for a core that it shares.
        fifo_rows: Rows that its FIFO has room for.
        peak_rows: Most rows that were in its FIFO at once.
        peak: The same in elements.
        block: The SE block whose gate its FIFO waits for, if one does.
    """

    name: str
    kind: str
    rows: int
    cycles_per_row: int
    busy_cycles: int
    starved_cycles: int
    blocked_cycles: int
    fifo_rows: int
    peak_rows: int
    peak: int
    block: str | None


@dataclass(frozen=True)
class Simulation:
    """What a simulated pipeline did.

    Args:
        cycles: Until the last output row of the first frame.
        first_output_cycle: Until the first output row.
        frame_cycles: Cycles that the slowest stage, or the busiest core or bus, needs for a frame.
        period_cycles: Cycles from frame to frame where frames come back to back.
        stall_cycles: Cycles that stages waited, from their first input to their last row of one frame, summed up.
        buffer: Elements that the gates held at most.
        fifo: Elements that all FIFOs have room for.
        stages: Each stage.
        multipliers: Multipliers used.
        done: For drawing: by stage, the cycle at which each row of one frame is made.
    """

    cycles: int
    first_output_cycle: int
    frame_cycles: int
    period_cycles: int
    stall_cycles: int
    buffer: int
    fifo: int
    stages: tuple[StageResult, ...]
    multipliers: int
    done: tuple[np.ndarray, ...]
    pipeline: Pipeline

    def to_dict(self) -> dict[str, Any]:
        """The totals as JSON types."""
        names = (
            "cycles",
            "first_output_cycle",
            "frame_cycles",
            "period_cycles",
            "stall_cycles",
            "buffer",
            "fifo",
        )
        return {name: getattr(self, name) for name in names}


def simulate(
    model: Any,
    plan: Plan,
    *,
    hardware: Hardware | None = None,
    fifos: Fifos = "unhindered",
    height: int | None = None,
    width: int | None = None,
    frames: int = 4,
) -> Simulation:
    """Run the rows of a network through a pipeline with a stage and a FIFO for each layer.

    A stage begins a row when it is done with the row before, the rows that it needs are there, and its FIFO has
    room; rows leave a FIFO when each reader is done with the rows that use them. Where the hardware has cores, a
    stage waits for its core as well, and rows for the bus between two cores (``sharing.py``). Not modelled: memory
    outside the chip, the loading of weights, clock limits, arithmetic. No hardware was measured.

    Args:
        model: The network, or what ``tiledse.open`` takes: of PyTorch or ONNX.
        plan: From ``find`` on it, with the tiles wanted; ``HxW`` is plain SE.
        hardware: Rates and sizes.
        fifos: ``minimum``: the smallest FIFOs without deadlock; ``unhindered``: those that lose no time.
        height: Rows of the image; the plan's if left out.
        width: Columns of the image.
        frames: Frames back to back from which the period is taken.

    Raises:
        TiledSEError: the network cannot be traced, the hardware fits no layer, or a FIFO that it fixes is too
            small: the error names it.

    Example:
        >>> import timm, tiledse as ts
        >>> model = timm.create_model("lcnet_050")
        >>> plan = ts.find(model, (3, 64, 64)).with_tile("1xW")
        >>> run = simulate(model, plan, fifos="minimum")
        >>> run.buffer == ts.cost(plan).tse.buffer_row_order, run.cycles > run.frame_cycles
        (True, True)
    """
    graph = build_graph(model, plan, 1, (height or plan.image_size[1], width or plan.input_size[2]))
    return simulate_graph(graph, hardware or Hardware(), fifos, frames)


def simulate_graph(
    graph: RowGraph, hardware: Hardware, fifos: Fifos = "unhindered", frames: int = 4
) -> Simulation:
    """``simulate`` on a row graph that is there already."""
    if fifos not in ("unhindered", "minimum"):
        raise TiledSEError(f"expected fifos 'unhindered' or 'minimum', got '{fifos}'")
    if frames < 3:
        raise TiledSEError(f"expected at least 3 frames to take a period from, got {frames}")
    pipeline = build_pipeline(graph, hardware)
    sharing = share(pipeline, hardware) if hardware.cores else None
    if sharing is not None:
        pipeline.busy = sharing.busy(pipeline)
    if sharing is not None and fifos == "unhindered":
        sizes = _filled(pipeline, sharing, frames)
    else:
        sizes = fifo_rows(pipeline, fifos, frames)
    for index, rows in pipeline.fixed.items():
        sizes[index] = rows
    return run_pipeline(pipeline, sizes, frames, sharing)


def _filled(pipeline: Pipeline, sharing: Sharing, frames: int) -> list[int]:
    """Rows that are in each FIFO where none is ever full."""
    run = SharedRun(pipeline, sharing, None, frames)
    run.run()
    done = [np.asarray(rows, np.int64) for rows in run.done]
    return [most_rows(*occupancy(pipeline, index, done, frames)) for index in range(len(done))]


def fifo_rows(pipeline: Pipeline, fifos: Fifos, frames: int = 4) -> list[int]:
    """Rows of each FIFO: the smallest with which all stages together run, or those that lose no time."""
    if fifos == "unhindered":
        return unhindered_rows(pipeline, frames)
    return jointly_minimum_rows(pipeline)


@dataclass(frozen=True)
class _Times:
    """When each stage has made each row; when it was there for each operand of its readers; when it left."""

    done: list[np.ndarray]
    there: list[list[np.ndarray]]
    left: list[np.ndarray]


def _times(pipeline: Pipeline, sizes: list[int], frames: int, sharing: Sharing | None) -> _Times:
    """The rows of some frames in time; a FIFO that is too small is so whether or not stages share a core."""
    done = row_times(pipeline, sizes, 1 if sharing is not None else frames)
    if sharing is None:
        return _Times(done, [[done[edge.source] for edge in stage.inputs] for stage in pipeline.stages], done)
    run = SharedRun(pipeline, sharing, sizes, frames)
    finished = run.run()
    assert finished
    there = [
        [np.asarray(run.arrived(edge.source, index), np.int64) for edge in stage.inputs]
        for index, stage in enumerate(pipeline.stages)
    ]
    arrays = (
        [np.asarray(rows, np.int64) for rows in found]
        for found in (run.done, map(run.left, range(len(there))))
    )
    return _Times(next(arrays), there, next(arrays))


def run_pipeline(
    pipeline: Pipeline, sizes: list[int], frames: int = 4, sharing: Sharing | None = None
) -> Simulation:
    """Run a pipeline with FIFOs of given rows, and with the cores and buses that its stages share.

    Raises:
        Deadlock: a FIFO is too small.
    """
    many = _times(pipeline, sizes, frames, sharing)
    one = many if frames == 1 else _times(pipeline, sizes, 1, sharing)
    done, single = many.left, one.done
    outputs = [i for i, stage in enumerate(pipeline.stages) if stage.output]
    ends = [max(int(done[i][(f + 1) * pipeline.stages[i].rows - 1]) for i in outputs) for f in range(frames)]
    gates = {index: block for block, index in pipeline.gate_stages.items()}
    results = []
    for index, stage in enumerate(pipeline.stages):
        starved, blocked = _waits(pipeline, index, single, one.there[index])
        peak = most_rows(*occupancy(pipeline, index, single))
        results.append(
            StageResult(
                stage.name, stage.kind, stage.rows, stage.cycles, stage.rows * stage.cycles, starved, blocked,
                sizes[index], peak, peak * stage.row_elements, gates.get(index),
            )
        )  # fmt: skip
    return Simulation(
        cycles=max(int(one.left[i][-1]) for i in outputs),
        first_output_cycle=min(int(one.left[i][0]) for i in outputs),
        frame_cycles=pipeline.frame_cycles,
        period_cycles=_period(pipeline, ends),
        stall_cycles=sum(r.starved_cycles + r.blocked_cycles for r in results),
        buffer=sum(r.peak for r in results if r.block is not None),
        fifo=sum(rows * s.row_elements for rows, s in zip(sizes, pipeline.stages)),
        stages=tuple(results),
        multipliers=pipeline.multipliers,
        done=tuple(single),
        pipeline=pipeline,
    )


def _period(pipeline: Pipeline, ends: list[int]) -> int:
    """Cycles from frame to frame; on a core that is shared, later frames delay earlier ones, so ends alone say less."""
    measured = -(-(ends[-1] - ends[0]) // (len(ends) - 1)) if len(ends) > 1 else ends[0]
    return max(measured, *pipeline.busy.values()) if pipeline.busy else measured


def ready_times(
    pipeline: Pipeline, index: int, done: list[np.ndarray], there: list[np.ndarray] | None = None
) -> tuple[int, np.ndarray]:
    """When the first of a stage's inputs is there, and when all is there that each of its rows needs.

    A row that the stage is not yet free for counts as ready when the row before is made.
    """
    stage = pipeline.stages[index]
    there = [done[edge.source] for edge in stage.inputs] if there is None else there
    arrivals = [
        times[np.maximum(edge.need[1:], 1) - 1] for edge, times in zip(stage.inputs, there, strict=True)
    ]
    first = min((int(times[0]) for times in arrivals), default=0)
    ready = np.concatenate([[first], done[index][:-1]])
    for edge, times in zip(stage.inputs, arrivals):
        ready = np.maximum(ready, np.where(edge.need[1:] > 0, times, 0))  # rows of padding need none
    return first, ready


def _waits(
    pipeline: Pipeline, index: int, done: list[np.ndarray], there: list[np.ndarray]
) -> tuple[int, int]:
    """Cycles in which a stage waited for its inputs, and then for room or its core, from its first input on."""
    begins = done[index] - pipeline.stages[index].cycles
    first, ready = ready_times(pipeline, index, done, there)
    before = np.concatenate([[first], done[index][:-1]])
    return int((ready - before).sum()), int((begins - ready).sum())


def compare(
    model: Any, plan: Plan, *, hardware: Hardware | None = None, fifos: Fifos = "unhindered",
    height: int | None = None, width: int | None = None,
) -> tuple[Simulation, Simulation, Plan]:  # fmt: skip
    """The network with plain SE and with the tiles of a plan, on the same hardware; and the plan at that size."""
    size = (height or plan.image_size[1], width or plan.input_size[2])
    tiled = build_graph(model, plan, 1, size)
    plain = build_graph(model, plan.with_tile("HxW"), 1, size)
    chosen = hardware or Hardware()
    return (
        simulate_graph(plain, chosen, fifos),
        simulate_graph(tiled, chosen, fifos),
        sized_plan(plan, tiled),
    )
