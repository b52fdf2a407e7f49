"""FIFO sizes: the smallest without deadlock, from what waits for what; and those that lose no time."""

from __future__ import annotations

import numpy as np

from .stages import Pipeline


def minimum_rows(pipeline: Pipeline) -> list[int]:
    """Rows that the FIFO after each stage must have, each taken alone: with one row less nothing can go on.

    Row r of a FIFO is freed when each reader has made the rows that use it. Those rows depend, by all ways through
    the network, on rows of the same FIFO down to some row x; rows r to x are then there at once.
    """
    stages = pipeline.stages
    sizes = []
    for index, stage in enumerate(stages):
        most = 1
        readers = [(m, e) for m, e in stage.readers if not stages[m].inputs[e].tap]
        if readers:
            last = max(m for m, _ in readers)
            rows = np.arange(stage.rows + 1)
            # By stage, the rows of this FIFO on which each of its rows depends.
            depends: dict[int, np.ndarray] = {index: rows}
            for m in range(index + 1, last + 1):
                found = None
                for edge in stages[m].inputs:
                    source = depends.get(edge.source)
                    if source is not None:
                        now = source[edge.need]
                        found = now if found is None else np.maximum(found, now)
                if found is not None:
                    depends[m] = found
            for m, e in readers:
                free = stages[m].inputs[e].free
                most = max(most, int((depends[m][free] - rows + 1)[1:].max()))
        sizes.append(most)
    return sizes


def free_running(pipeline: Pipeline, frames: int = 1) -> list[np.ndarray]:
    """When each stage has made each row, with FIFOs that are never full."""
    done: list[np.ndarray] = []
    for stage in pipeline.stages:
        count = stage.rows * frames
        ready = np.zeros(count, np.int64)
        for edge in stage.inputs:
            ready = np.maximum(ready, done[edge.source][needed(pipeline, edge.source, edge.need, frames)])
        spent = np.arange(count, dtype=np.int64) * stage.cycles
        done.append(np.maximum.accumulate(ready - spent) + spent + stage.cycles)
    return done


def needed(pipeline: Pipeline, source: int, need: np.ndarray, frames: int) -> np.ndarray:
    """The index of the last row of the source that each row waits for, over several frames."""
    per_frame = pipeline.stages[source].rows
    return (np.arange(frames)[:, None] * per_frame + need[None, 1:] - 1).ravel()


def latest(pipeline: Pipeline, done: list[np.ndarray], frames: int = 1) -> list[np.ndarray]:
    """The latest that each row may be made so that every output row leaves when it does in ``done``."""
    stages = pipeline.stages
    late: list[np.ndarray] = [np.zeros(0, np.int64)] * len(stages)
    for index in range(len(stages) - 1, -1, -1):
        stage = stages[index]
        count = stage.rows * frames
        forever = np.iinfo(np.int64).max // 4
        limit = done[index].copy() if stage.output else np.full(count, forever)
        for m, e in stage.readers:
            reader = stages[m]
            need = needed(pipeline, index, reader.inputs[e].need, frames)
            # Row r must be there when the first row that needs it starts; rows that nobody needs are free.
            first = np.searchsorted(need, np.arange(count), side="left")
            start = np.append(late[m] - reader.cycles, forever)
            limit = np.minimum(limit, start[first])
        spent = np.arange(count, dtype=np.int64) * stage.cycles
        bounded = np.minimum.accumulate((limit - spent)[::-1])[::-1] + spent
        # Last rows that nobody needs (a stride leaves them out) still have to be made: when they come anyway.
        times = np.where(bounded >= forever // 2, done[index], bounded)
        late[index] = np.maximum.accumulate(times - spent) + spent
    return late


def occupancy(
    pipeline: Pipeline, index: int, done: list[np.ndarray], frames: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """When the FIFO after a stage gets each row (as the stage begins it), and when the row is freed."""
    stage = pipeline.stages[index]
    begins = done[index] - stage.cycles
    freed = done[index].copy()  # a row that only taps read is gone as soon as it is there
    for m, e in stage.readers:
        edge, reader = pipeline.stages[m].inputs[e], pipeline.stages[m]
        if edge.tap:
            continue
        last = (np.arange(frames)[:, None] * reader.rows + edge.free[None, 1:] - 1).ravel()
        freed = np.maximum(freed, np.where(last >= 0, done[m][np.maximum(last, 0)], 0))
    return begins, np.maximum.accumulate(freed)


def most_rows(begins: np.ndarray, freed: np.ndarray) -> int:
    """Most rows in a FIFO at once: a row that is freed as another begins makes room for it."""
    gone = np.searchsorted(freed, begins, side="right")
    return int((np.arange(1, len(begins) + 1) - np.minimum(gone, np.arange(len(begins)))).max())


def unhindered_rows(pipeline: Pipeline, frames: int = 1) -> list[int]:
    """Rows of FIFOs with which every output row leaves as early as with FIFOs that are never full.

    Each row is made as late as that allows; what is then in the FIFOs at once is their size. They are sizes that
    suffice; trading one FIFO against another may do with less in all.
    """
    done = free_running(pipeline, frames)
    late = latest(pipeline, done, frames)
    least = minimum_rows(pipeline)
    return [max(low, most_rows(*occupancy(pipeline, index, late, frames))) for index, low in enumerate(least)]
