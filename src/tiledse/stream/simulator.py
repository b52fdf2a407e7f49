"""Simulate: the rows of a network on a pipelined accelerator, cycle by cycle."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import TiledSEError
from ..plan import Plan
from .building import build_graph
from .graph import RowGraph
from .hardware import Hardware
from .heights import sized_plan
from .sharing import SharedRun, Sharing, share
from .sizes import minimum_rows, most_rows, occupancy, unhindered_rows
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


def jointly_minimum_rows(pipeline: Pipeline) -> list[int]:
    """FIFOs with which all stages run, and of which none can be a row smaller.

    Sizes that suffice one by one may block each other: rows that wait before or after a layer must wait in one of
    the two places. What a row-by-row run holds suffices for all; from there each FIFO is made as small as the
    others allow, those with the longest rows first. Such sizes are minimal, not the only minimal ones.
    """
    least = minimum_rows(pipeline)
    sizes = [max(pair) for pair in zip(least, pipeline.counted())]
    larger = [i for i, size in enumerate(sizes) if size > least[i]]
    for index in sorted(larger, key=lambda i: -pipeline.stages[i].row_elements):
        low, high = least[index], sizes[index]
        while low < high:
            sizes[index] = (low + high) // 2
            try:
                row_times(pipeline, sizes, 1)
                high = sizes[index]
            except Deadlock:
                low = sizes[index] + 1
        sizes[index] = high
    return sizes


class Deadlock(TiledSEError):
    """Nothing can go on; ``full`` are the stages whose FIFOs have no room."""

    def __init__(self, pipeline: Pipeline, sizes: list[int], full: list[int], made: int) -> None:
        self.full = full
        least = minimum_rows(pipeline)
        names = ", ".join(
            f"'{pipeline.stages[i].name}' has {sizes[i]} rows and needs {max(least[i], sizes[i] + 1)}"
            for i in full
        )
        super().__init__(f"deadlock after {made} rows of the image: a FIFO is too small: {names}")


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


def row_times(pipeline: Pipeline, sizes: list[int], frames: int) -> list[np.ndarray]:
    """The cycle at which each stage has made each row, with FIFOs of given rows.

    A stage runs until it must wait for one row of one neighbour, and goes on when that has come: each row is
    looked at once or twice, whatever the cycles.

    Raises:
        Deadlock: all stages wait.
    """
    stages = pipeline.stages
    done: list[list[int]] = [[] for _ in stages]
    totals = [stage.rows * frames for stage in stages]
    conditions = [_conditions(pipeline, sizes, i, frames, done) for i in range(len(stages))]
    waiting: list[list[tuple[int, int]]] = [
        [] for _ in stages
    ]  # by neighbour: (rows it must have made, who waits)
    stuck_on: list[tuple[int, bool]] = [(0, False)] * len(stages)
    ready = deque(range(len(stages)))
    while ready:
        index = ready.popleft()
        mine, cycles, waits = done[index], stages[index].cycles, conditions[index]
        row, total = len(mine), totals[index]
        now = mine[-1] if mine else 0
        while row < total:
            for other, theirs, needs, room in waits:
                need = needs[row]
                if need:
                    if len(theirs) < need:
                        waiting[other].append((need, index))
                        stuck_on[index] = (other, room)
                        break
                    time = theirs[need - 1]
                    if time > now:
                        now = time
            else:
                now += cycles
                mine.append(now)
                row += 1
                continue
            break
        if waiting[index]:
            still = []
            for need, other in waiting[index]:
                if need <= row:
                    ready.append(other)
                else:
                    still.append((need, other))
            waiting[index] = still
    if any(len(mine) < total for mine, total in zip(done, totals)):
        raise _deadlock(pipeline, sizes, done, totals, stuck_on)
    return [np.asarray(mine, np.int64) for mine in done]


Condition = tuple[int, list[int], list[int], bool]


def _conditions(
    pipeline: Pipeline, sizes: list[int], index: int, frames: int, done: list[list[int]]
) -> list[Condition]:
    """What each row of a stage waits for: (neighbour, its times, rows of it that must be made, whether for room)."""
    stages, stage = pipeline.stages, pipeline.stages[index]
    found: list[Condition] = []
    per_frame = np.arange(frames)[:, None]
    for edge in stage.inputs:
        need = (per_frame * stages[edge.source].rows + edge.need[None, 1:]).ravel()
        found.append((edge.source, done[edge.source], need.tolist(), False))
    for m, e in stage.readers:
        edge = stages[m].inputs[e]
        if edge.tap:
            continue
        free = (per_frame * stages[m].rows + edge.free[None, 1:]).ravel()
        size = min(sizes[index], len(free))
        # Row g needs room: row g - size must have been freed.
        room = np.concatenate([np.zeros(size, np.int64), free[: len(free) - size]])
        found.append((m, done[m], room.tolist(), True))
    return found


def _deadlock(
    pipeline: Pipeline,
    sizes: list[int],
    done: list[list[int]],
    totals: list[int],
    stuck_on: list[tuple[int, bool]],
) -> Deadlock:
    """Follow who waits for whom until it comes round: the FIFOs without room on that ring are too small."""
    index = next(i for i, total in enumerate(totals) if len(done[i]) < total)
    seen: list[int] = []
    while index not in seen:
        seen.append(index)
        index = stuck_on[index][0]
    ring = seen[seen.index(index) :]
    full = [i for i in ring if stuck_on[i][1]]
    return Deadlock(pipeline, sizes, full, len(done[0]))


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
