"""Flow: the order in which rows are made, and how many rows each value holds at each moment. Integers only.

Rows are made as late in the network as possible first, so that they are used up before new ones come. The engine
is a Flow that also computes; without it, a Flow counts.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from ..errors import TiledSEError
from .graph import Node, RowGraph
from .maps import FOREVER, Between, First, Strips, Total, Whole


@dataclass
class Progress:
    """How far a flow has come; all that decides what happens next.

    Args:
        produced: Rows made, by value.
        peak: Most rows held at once, by value.
        held_for: Most rows held at once for one operand of a gate, by node.
        ended: Whether the image is complete.
    """

    produced: list[int]
    peak: list[int]
    held_for: dict[int, int]
    ended: bool = False


class Flow:
    """Moves rows through a row graph.

    Args:
        graph: The row graph.
        rows: Rows of the image that a step may bring. 1 counts what a device holds to which rows come one by one.
        known: Whether the height is the one that the graph was traced at; else it shows at the end.
    """

    def __init__(self, graph: RowGraph, rows: int = 1, known: bool = True) -> None:
        self.graph, self.rows, self.known = graph, rows, known
        count = len(graph.values)
        self.progress = Progress(
            [0] * count, [0] * count, {i: 0 for i, n in enumerate(graph.nodes) if n.kind == "gate"}
        )
        self.heights: list[int | None] = [v.height if known else None for v in graph.values]
        top = graph.values[0].height
        self.limits = [
            rows if rows == 1 else max(2, 2 * -(-rows * v.height // top)) for v in graph.values
        ]  # fmt: skip
        if rows == 1:
            self.limits = [1] * count
        if not known:
            self._fixed_heights()
        self._users = [[node for node, _ in value.users] for value in graph.values]

    def _fixed_heights(self) -> None:
        for node in self.graph.nodes:
            if isinstance(node.maps[0], (Total, Whole, First, Between)):
                self.heights[node.output] = self.graph.values[node.output].height

    def feed(self, rows: int) -> None:
        """Rows of the image come."""
        self._produce(0, rows)
        self._drain(self._users[0])

    def end(self) -> None:
        """The image is complete: what waits for rows below gets padding, means are given out."""
        progress = self.progress
        progress.ended = True
        if not self.known:
            self.heights[0] = progress.produced[0]
            for node in self.graph.nodes:
                if self.heights[node.output] is None:
                    self.heights[node.output] = node.maps[0].height(self._height(node.inputs[0]))  # type: ignore[union-attr]
        self._drain(list(range(len(self.graph.nodes))))

    def _height(self, value: int) -> int:
        height = self.heights[value]
        assert height is not None
        return height

    def _drain(self, start: list[int]) -> None:
        heap = [-i for i in set(start)]
        heapq.heapify(heap)
        waiting = set(heap)
        nodes = self.graph.nodes
        while heap:
            index = -heapq.heappop(heap)
            waiting.discard(-index)
            node = nodes[index]
            made = self._step(index, node)
            if made:
                for user in (*self._users[node.output], index):
                    if -user not in waiting:
                        waiting.add(-user)
                        heapq.heappush(heap, -user)

    def _step(self, index: int, node: Node) -> bool:
        """Make the rows of one node that can be made, up to its limit; False where there is none."""
        produced = self.progress.produced
        done = produced[node.output]
        out = self.heights[node.output]
        if out is not None and done >= out:
            return False
        if node.absorbs:
            return self._absorb(index, node)
        ready = self.ready(node, out)
        if not node.whole:
            ready = min(ready, done + self.limits[node.output])
        if ready <= done:
            return False
        self.make(index, node, done, ready)
        self._produce(node.output, ready - done)
        self._release(node)
        return True

    def ready(self, node: Node, out: int | None) -> int:
        """How many rows of a node's output its inputs allow by now."""
        ready = out if out is not None else 1 << 62
        for value, how in zip(node.inputs, node.maps):
            avail, height = self.progress.produced[value], self.heights[value]
            if height is None or avail < height:
                ready = min(ready, how.ready(avail))
            if height is None and isinstance(how, Strips):
                # A gate of rows above only is known before its strip, which may never come.
                ready = min(ready, how.height(avail))
        return ready

    def _absorb(self, index: int, node: Node) -> bool:
        value = node.inputs[0]
        avail, height = self.progress.produced[value], self.heights[value]
        self.absorb(index, node, avail)
        self._trim(value)
        if height is None or avail < height:
            return False
        self.make(index, node, 0, 1)
        self._produce(node.output, 1)
        return True

    def _produce(self, value: int, rows: int) -> None:
        progress = self.progress
        progress.produced[value] += rows
        made = progress.produced[value]
        held = made - min(self.cursor(value), made - rows)
        if held > progress.peak[value]:
            progress.peak[value] = held
        for node, operand in self.graph.values[value].users:
            if operand == 0 and node in progress.held_for:
                held = made - progress.produced[self.graph.nodes[node].output]
                progress.held_for[node] = max(progress.held_for[node], held)
        if not self.graph.values[value].users:
            self._trim(value)

    def _release(self, node: Node) -> None:
        for value in set(node.inputs):
            self._trim(value)

    def _trim(self, value: int) -> None:
        self.drop(value, min(self.cursor(value), self.progress.produced[value]))

    def cursor(self, value: int) -> int:
        """The first row of a value that somebody still needs."""
        made = self.progress.produced[value]
        low = made
        for index, operand in self.graph.values[value].users:
            node = self.graph.nodes[index]
            done, out = self.progress.produced[node.output], self.heights[node.output]
            if node.absorbs:
                need = self.absorbed(index)
            elif out is not None and done >= out:
                continue
            else:
                need = self.unread(node, operand, done)
            if need < low:
                low = need
        return low

    def absorbed(self, index: int) -> int:
        """Rows that an absorbing node has taken in; a counting flow takes them at once."""
        return self.progress.produced[self.graph.nodes[index].inputs[0]]

    def unread(self, node: Node, operand: int, done: int) -> int:
        """The first row that a node still reads, which has made so many of its own.

        A squeeze adds rows to its sums as they pass, and a counting flow does not have it hold any.
        """
        return FOREVER if node.kind == "squeeze" else node.maps[operand].low(done)

    # What the engine adds to counting.
    def make(self, index: int, node: Node, a: int, b: int) -> None:
        """Output rows a to b of a node are made."""

    def absorb(self, index: int, node: Node, avail: int) -> None:
        """An absorbing node takes in the rows up to ``avail``."""

    def drop(self, value: int, row: int) -> None:
        """Rows of a value before ``row`` are needed no more."""


@dataclass(frozen=True)
class Held:
    """What one layer holds for those after it.

    Args:
        name: The layer's name in the network; of a gate, the SE block's.
        kind: ``gate`` (waits for the descriptor), ``shortcut`` (waits for another branch) or ``rows`` (lines of a
            window, or one row on its way).
        rows: Most rows held at once.
        elements: The same in elements of one image.
    """

    name: str
    kind: str
    rows: int
    elements: int


def count_held(graph: RowGraph, height: int | None = None) -> list[Held]:
    """Stream one image through a row graph, row by row, without computing, and count.

    Args:
        graph: The row graph.
        height: Rows of an image whose height shows at its end; left out, it is known, and that of the graph.

    Returns:
        What each value holds, in the order of the network; a value that feeds a gate is named after its block.

    Raises:
        TiledSEError: rows were left over, which no network with a row graph does.
    """
    flow = Flow(graph, known=height is None)
    for _ in range(_rows(graph, height)):
        flow.feed(1)
    flow.end()
    for value, made, expected in zip(graph.values, flow.progress.produced, flow.heights):
        if made != expected:
            raise TiledSEError(f"'{value.name}' made {made} of {expected} rows: the row graph is wrong")
    return held_of(graph, flow.progress.peak)


def first_output(graph: RowGraph, height: int | None = None) -> int:
    """Rows of the image after which the first row of an output is known; its height, where that is its end."""
    flow = Flow(graph, known=height is None)
    for row in range(1, _rows(graph, height) + 1):
        flow.feed(1)
        if any(flow.progress.produced[value] for value in graph.outputs):
            return row
    return _rows(graph, height)


def _rows(graph: RowGraph, height: int | None) -> int:
    return graph.values[0].height if height is None else height


def held_of(graph: RowGraph, rows: list[int]) -> list[Held]:
    """Rows held by value as what each layer holds."""
    held = []
    for value, most in zip(graph.values, rows):
        users = [graph.nodes[i] for i, _ in value.users]
        gates = [
            graph.nodes[i] for i, operand in value.users if graph.nodes[i].kind == "gate" and operand == 0
        ]
        joins = (len(users) > 1 or most > 1) and any(node.kind == "join" for node in users)
        kind = "gate" if gates else "shortcut" if joins else "rows"
        name = str(gates[0].block) if gates else value.name
        held.append(Held(name, kind, most, most * value.row_elements))
    return held
