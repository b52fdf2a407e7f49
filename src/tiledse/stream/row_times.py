"""When each stage of a pipeline makes each of its rows, with FIFOs of given rows; and the smallest that let all run."""

from __future__ import annotations

from collections import deque

import numpy as np

from ..errors import TiledSEError
from .sizes import minimum_rows
from .stages import Pipeline


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
