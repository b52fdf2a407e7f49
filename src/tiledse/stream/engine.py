"""Engine: the flow of rows through a network, with the rows computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .buffers import RowBuffer
from .flow import Flow
from .graph import Node, RowGraph


class Engine(Flow):
    """A flow that computes what flows.

    Attributes:
        buffers: Rows that are still needed, by value.
        states: Running sums, by node.
        taken: Rows that a running sum has taken in, by node.
        given: New rows of the outputs.
        bytes: Bytes in the buffers now.
        peak_bytes: The most there were.
    """

    def __init__(self, graph: RowGraph, rows: int, known: bool) -> None:
        super().__init__(graph, rows, known)
        self.buffers = [RowBuffer(v.row_dim) for v in graph.values]
        self.states: dict[int, Any] = {}
        self.taken = {i: 0 for i, node in enumerate(graph.nodes) if node.absorbs}
        self.given: list[list[Tensor]] = [[] for _ in graph.outputs]
        self.bytes = self.peak_bytes = 0

    def put(self, value: int, start: int, rows: Tensor) -> None:
        """Hand rows of a value to those who read it."""
        for i, output in enumerate(self.graph.outputs):
            if output == value:
                self.given[i].append(rows)
        if self.graph.values[value].users:
            self.buffers[value].append(start, rows)
            self.bytes += rows.nbytes
            self.peak_bytes = max(self.peak_bytes, self.bytes)

    def make(self, index: int, node: Node, a: int, b: int) -> None:
        """Compute output rows a to b of a node from the rows in the buffers."""
        if node.absorbs:
            assert node.finish is not None
            rows = node.finish(self.states.pop(index))
        else:
            parts = []
            for value, how in zip(node.inputs, node.maps):
                height = self.heights[value]
                high = how.need(b, self.progress.produced[value] if height is None else height)
                parts.append(self.buffers[value].read(how.low(a), high))
            if node.stateful:
                rows, self.states[index] = node.run(parts, a, b, self.states.get(index))
            else:
                rows = node.run(parts, a, b)
            del parts
        for step in node.tail:
            rows = step(rows)
        self.put(node.output, a, rows)

    def absorb(self, index: int, node: Node, avail: int) -> None:
        """Add the rows up to ``avail`` to a running sum."""
        taken = self.taken[index]
        if avail > taken:
            part = self.buffers[node.inputs[0]].read(taken, avail)
            self.states[index] = node.run(part.double() if node.wide else part, self.states.get(index))
            self.taken[index] = avail

    def absorbed(self, index: int) -> int:
        """Rows that a running sum has taken in."""
        return self.taken[index]

    def unread(self, node: Node, operand: int, done: int) -> int:
        """The first row that a node still reads: a squeeze reads rows when it makes the descriptor."""
        return int(node.maps[operand].low(done))

    def drop(self, value: int, row: int) -> None:
        """Free rows of a value before ``row``."""
        buffer = self.buffers[value]
        before = buffer.bytes
        buffer.drop(row)
        self.bytes += buffer.bytes - before
