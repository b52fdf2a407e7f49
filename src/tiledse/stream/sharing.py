"""Sharing: which layers take turns on a core, which rows travel on a bus, and when each row is made then."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import count

import numpy as np

from ..errors import TiledSEError
from .hardware import Hardware, matching
from .stages import Pipeline, Stage

# The ways in and out of the chip, which a bus may join as it joins cores.
IMAGE, OUTPUT = "image", "output"


@dataclass
class Sharing:
    """What the stages of a pipeline share.

    Attributes:
        core: By stage, the name of its core; the image's is ``image``.
        transfers: By stage, the buses that each of its rows travels on, with cycles and the core that it goes to.
    """

    core: list[str]
    transfers: list[list[tuple[str, int, str]]] = field(default_factory=list)

    def busy(self, pipeline: Pipeline) -> dict[str, int]:
        """Cycles that each core and each bus is at work for a frame."""
        found: dict[str, int] = {}
        for stage, core, sent in zip(pipeline.stages, self.core, self.transfers):
            if core != IMAGE:
                found[f"core {core}"] = found.get(f"core {core}", 0) + stage.rows * stage.cycles
            for bus, cycles, _ in sent:
                found[f"bus {bus}"] = found.get(f"bus {bus}", 0) + stage.rows * cycles
        return found


def share(pipeline: Pipeline, hardware: Hardware) -> Sharing:
    """Put stages on cores and their rows on buses; the cycles of stages become those of their cores.

    Raises:
        TiledSEError: a layer without a core, a core that cannot run one of its layers, or two that no bus joins.
    """
    stages = pipeline.stages
    core: list[str] = [IMAGE]
    names = [stage.name for stage in stages]
    kinds = [f"{stage.name}:{stage.kind}" for stage in stages]
    chosen: dict[int, str] = {}
    for name, part in hardware.cores.items():
        for glob in part.layers:
            table = kinds if ":" in glob else names
            hits = matching({glob: 1}, table, f"cores['{name}'].layers")
            chosen.update({i: name for i in hits if i})
    given = matching(hardware.cycles_per_row, names, "cycles_per_row")
    for index, stage in enumerate(stages[1:], 1):
        before = core[stage.inputs[0].source] if stage.inputs else IMAGE
        name = chosen.get(index, before)
        if name == IMAGE:
            raise TiledSEError(f"hardware: no core has the layer '{stage.name}', and none has what it reads")
        core.append(name)
        if index not in given:
            stage.cycles = _cycles(pipeline, stage, hardware, name, index in chosen)
    sharing = Sharing(core)
    sharing.transfers = [_sent(pipeline, sharing, hardware, index) for index in range(len(stages))]
    stages[0].cycles = hardware.image_cycles_per_row or -(
        -max(sharing.busy(pipeline).values()) // stages[0].rows
    )
    return sharing


def _cycles(pipeline: Pipeline, stage: Stage, hardware: Hardware, name: str, named: bool) -> int:
    """Cycles a row on a core."""
    part = hardware.cores[name]
    if stage.macs:
        if part.multipliers is None:
            raise TiledSEError(
                f"hardware: cores['{name}'] has no multipliers, and its layer '{stage.name}' multiplies"
            )
        return max(1, -(-(stage.macs // stage.rows) // part.multipliers))
    if part.elements is None or not named:
        return 1
    read = 0
    for edge in stage.inputs:
        rows = int(np.diff(edge.need).max()) if stage.rows > 1 else int(edge.need[-1])
        read = max(read, max(1, rows if edge.tap else 1) * pipeline.stages[edge.source].row_elements)
    return max(1, -(-read // part.elements))


def _sent(pipeline: Pipeline, sharing: Sharing, hardware: Hardware, index: int) -> list[tuple[str, int, str]]:
    """The buses that each row of a stage travels on: once to each core that reads it."""
    stage, own = pipeline.stages[index], sharing.core[index]
    targets = list(dict.fromkeys(sharing.core[m] for m, _ in stage.readers))
    if stage.output:
        targets.append(OUTPUT)
    found = []
    for target in targets:
        if target == own or not hardware.buses:
            continue
        bus = next(
            (
                name
                for name, part in hardware.buses.items()
                if all(_joins(part.cores, end) for end in (own, target))
            ),
            None,
        )
        if bus is None:
            if own == IMAGE or target == OUTPUT:
                continue  # rows come in and go out by a way of their own
            raise TiledSEError(
                f"hardware: no bus joins the cores '{own}' and '{target}', and rows of '{stage.name}' go that way"
            )
        cycles = -(-stage.row_elements * hardware.element_bits // hardware.buses[bus].bits)
        found.append((bus, cycles, target))
    return found


def _joins(cores: tuple[str, ...] | None, end: str) -> bool:
    if cores is None:
        return end not in (IMAGE, OUTPUT)
    return any(fnmatchcase(end, glob) for glob in cores)


class SharedRun:
    """Rows in time, on cores and buses that are shared.

    A core that is free takes the row that has been ready for longest; of several, that of the latest layer. A bus
    carries rows in the order in which they were made. What waits, waits in the FIFO of the stage that made it.

    Args:
        pipeline: The pipeline.
        sharing: What it shares.
        sizes: Rows of each FIFO; None leaves them without end.
        frames: Frames back to back.
    """

    def __init__(self, pipeline: Pipeline, sharing: Sharing, sizes: list[int] | None, frames: int) -> None:
        self.stages, self.sharing, self.frames = pipeline.stages, sharing, frames
        counts = range(len(self.stages))
        self.done: list[list[int]] = [[] for _ in counts]
        # A row that travels is there when the bus has carried it, not when it is made.
        self.sent: dict[tuple[int, str], list[int]] = {
            (index, target): [] for index, ways in enumerate(sharing.transfers) for _, _, target in ways
        }
        self.totals = [stage.rows * frames for stage in self.stages]
        self.needs = [self._needs(index) for index in counts]
        self.rooms = [[] if sizes is None else self._rooms(index, sizes[index]) for index in counts]
        self.members: dict[str, list[int]] = {}
        for index, name in enumerate(sharing.core):
            self.members.setdefault(name, []).append(index)
        self.working: dict[str, bool] = dict.fromkeys(self.members, False)
        self.free: dict[str, int] = {}
        self.events: list[tuple[int, int, str, int, str]] = []
        self.order = count()

    def _needs(self, index: int) -> list[tuple[int, list[int]]]:
        """By operand: the stage that it is, and rows of it that each row needs."""
        per_frame = np.arange(self.frames)[:, None]
        found = []
        for edge in self.stages[index].inputs:
            rows = per_frame * self.stages[edge.source].rows + edge.need[None, 1:]
            found.append((edge.source, rows.ravel().tolist()))
        return found

    def _rooms(self, index: int, size: int) -> list[tuple[int, list[int]]]:
        """By reader: rows of it that must be made before the FIFO has room for each row."""
        per_frame = np.arange(self.frames)[:, None]
        found = []
        for m, e in self.stages[index].readers:
            edge = self.stages[m].inputs[e]
            if not edge.tap:
                freed = (per_frame * self.stages[m].rows + edge.free[None, 1:]).ravel()
                kept = min(size, len(freed))
                room = np.concatenate([np.zeros(kept, np.int64), freed[: len(freed) - kept]])
                found.append((m, room.tolist()))
        return found

    def arrived(self, source: int, target: int) -> list[int]:
        """When rows of a stage were there for another one."""
        return self.sent.get((source, self.sharing.core[target]), self.done[source])

    def left(self, index: int) -> list[int]:
        """When rows of an output of the network left the chip."""
        return self.sent.get((index, OUTPUT), self.done[index])

    def run(self) -> bool:
        """Run to the end; False where nothing can go on before."""
        for name in self.members:
            self._begin(name, 0)
        while self.events:
            now, _, kind, index, target = heapq.heappop(self.events)
            if kind == "made":
                self._made(index, now)
            else:
                self.sent[index, target].append(now)
                if target in self.members:
                    self._begin(target, now)
        return all(len(rows) == total for rows, total in zip(self.done, self.totals))

    def _made(self, index: int, now: int) -> None:
        self.done[index].append(now)
        own = self.sharing.core[index]
        self.working[own] = False
        for bus, cycles, target in self.sharing.transfers[index]:
            end = max(now, self.free.get(bus, 0)) + cycles
            self.free[bus] = end
            heapq.heappush(self.events, (end, next(self.order), "sent", index, target))
        waiting = {own, *(self.sharing.core[m] for m, _ in self.stages[index].readers)}
        waiting |= {self.sharing.core[edge.source] for edge in self.stages[index].inputs}
        for name in waiting:
            self._begin(name, now)

    def _begin(self, name: str, now: int) -> None:
        """Let a core begin a row, where it is free and one is ready."""
        if self.working[name]:
            return
        ready = [
            (since, -index)
            for index in self.members[name]
            if len(self.done[index]) < self.totals[index] and (since := self._since(index)) is not None
        ]
        if ready:
            index = -min(ready)[1]
            self.working[name] = True
            end = now + self.stages[index].cycles
            heapq.heappush(self.events, (end, next(self.order), "made", index, ""))

    def _since(self, index: int) -> int | None:
        """When all was there that the next row of a stage waits for, but its core; None where something is missing."""
        row, since = len(self.done[index]), 0
        for source, needs in self.needs[index]:
            times = self.arrived(source, index)
            if len(times) < needs[row]:
                return None
            since = max(since, times[needs[row] - 1] if needs[row] else 0)
        for reader, needs in self.rooms[index]:
            if len(self.done[reader]) < needs[row]:
                return None
            since = max(since, self.done[reader][needs[row] - 1] if needs[row] else 0)
        return since
