"""Stages: the row graph as a pipeline, with tables of which row waits for which."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import numpy as np

from ..errors import TiledSEError
from .flow import Flow
from .graph import RowGraph
from .hardware import Hardware, matching

# Kinds that sum rows up while they pass and hold none of them.
TAPS = frozenset(("squeeze", "mean", "sum", "amax"))


@dataclass
class Edge:
    """One operand of a stage.

    Args:
        source: The stage whose rows are read.
        need: need[b]: rows of the source that must be there before row b (from 1) can be made; need[0] is 0.
        free: free[r]: rows that this stage must have made before row r (from 1) of the source is freed; zeros for
            a tap, which holds none.
        tap: Whether rows are summed up as they pass.
    """

    source: int
    need: np.ndarray
    free: np.ndarray
    tap: bool


@dataclass
class Stage:
    """A layer of the pipeline, and the FIFO that its rows go into; stage 0 is the image.

    Args:
        name: The layer's name; of a gate's operand, see ``Pipeline.gate_stages``.
        kind: As the node's.
        rows: Rows it makes a frame.
        row_elements: Elements of one row.
        macs: Multiply-adds a frame.
        cycles: Cycles a row.
        inputs: What it reads.
        readers: (stage, number of the edge among its inputs) that read its rows.
        output: Whether its rows leave the network.
    """

    name: str
    kind: str
    rows: int
    row_elements: int
    macs: int
    cycles: int
    inputs: list[Edge]
    readers: list[tuple[int, int]]
    output: bool


@dataclass
class Pipeline:
    """Stages in the order of the network.

    Args:
        stages: The stages; a stage reads those before it.
        gate_stages: By SE block, the stage whose FIFO the gate's map waits in.
        fixed: Rows of the FIFOs that the hardware file fixes, by stage.
        multipliers: Multipliers that the stages have been given.
        graph: The row graph.
        busy: Cycles a frame of each core and bus that stages share; empty where each stage is alone.
    """

    stages: list[Stage]
    gate_stages: dict[str, int]
    fixed: dict[int, int]
    multipliers: int
    graph: RowGraph
    busy: dict[str, int] = field(default_factory=dict)

    def counted(self) -> list[int]:
        """Rows that each FIFO holds where rows are made one by one, as soon as they can be."""
        flow = Flow(self.graph)
        for _ in range(self.stages[0].rows):
            flow.feed(1)
        flow.end()
        return flow.progress.peak

    @property
    def frame_cycles(self) -> int:
        """Cycles that the slowest stage, core or bus needs for a frame: no pipeline is faster than that a frame."""
        if self.busy:
            return max(self.busy.values())
        return max(stage.rows * stage.cycles for stage in self.stages)


def build_pipeline(graph: RowGraph, hardware: Hardware) -> Pipeline:
    """A stage for each node of the row graph, with its rate on the hardware.

    Raises:
        TiledSEError: fewer multipliers than layers that multiply, or a name in the hardware that no layer has.
    """
    image = graph.values[0]
    stages = [Stage("image", "image", image.height, image.row_elements, 0, 1, [], [], 0 in graph.outputs)]
    for node in graph.nodes:
        value = graph.values[node.output]
        stage = Stage(
            node.name, node.kind, value.height, value.row_elements, node.macs, 1, [], [], value.outputs > 0
        )
        for operand, source in enumerate(node.inputs):
            tap = node.kind in TAPS or node.absorbs
            stage.inputs.append(_edge(graph, source, node.maps[operand], value.height, tap))
            stages[source].readers.append((len(stages), operand))
        stages.append(stage)
    names = [stage.name for stage in stages]
    given = matching(hardware.cycles_per_row, names, "cycles_per_row")
    multipliers = _share(graph, stages, given, hardware.multipliers)
    slowest = max(stage.rows * stage.cycles for stage in stages[1:])
    stages[0].cycles = hardware.image_cycles_per_row or ceil(slowest / stages[0].rows)
    fixed = matching(hardware.fifo_rows, names, "fifo_rows")
    gates = {block: node.inputs[0] for block, node in graph.gates.items()}
    return Pipeline(stages, gates, fixed, multipliers, graph)


def _edge(graph: RowGraph, source: int, how: object, rows: int, tap: bool) -> Edge:
    height = graph.values[source].height
    made = np.arange(rows + 1, dtype=np.int64)
    need = np.maximum.accumulate(np.where(made > 0, how.need(made, height), 0))  # type: ignore[attr-defined]
    if tap:
        return Edge(source, need, np.zeros(height + 1, np.int64), True)
    # After d rows the first `low(d)` rows of the source are free; after the last row, all of them.
    low = np.minimum(np.broadcast_to(how.low(made), made.shape), height)  # type: ignore[attr-defined]
    low = np.where(made == rows, height, low)
    free = np.searchsorted(low, np.arange(height + 1), side="left")
    return Edge(source, need, free, False)


def _excitations(graph: RowGraph) -> dict[int, int]:
    """Nodes between a block's squeeze and its gate, with the rows of the map that they gate."""
    rows: dict[int, int] = {}
    behind: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        if node.kind == "squeeze":
            behind[node.output] = graph.values[node.inputs[0]].height
        elif node.kind != "gate":
            maps = [behind[i] for i in node.inputs if i in behind]
            if maps:
                behind[node.output] = rows[index] = max(maps)
        if node.kind == "squeeze" and node.macs:
            rows[index] = behind[node.output]
    return rows


def _share(graph: RowGraph, stages: list[Stage], given: dict[int, int], budget: int) -> int:
    """Share multipliers out by multiply-adds of a frame; gives how many were."""
    excitations = _excitations(graph)
    weight: dict[int, int] = {}
    for index, stage in enumerate(stages):
        if index in given:
            stage.cycles = given[index]
        elif stage.macs:
            rows = excitations.get(index - 1, stage.rows)
            weight[index] = stage.macs // stage.rows * rows
    if len(weight) > budget:
        raise TiledSEError(
            f"hardware: {budget} multipliers for {len(weight)} layers that multiply; give at least one for each"
        )
    spare, total = budget - len(weight), max(1, sum(weight.values()))
    used = 0
    for index, share in weight.items():
        multipliers = 1 + spare * share // total
        used += multipliers
        stages[index].cycles = max(1, -(-(stages[index].macs // stages[index].rows) // multipliers))
    return used
