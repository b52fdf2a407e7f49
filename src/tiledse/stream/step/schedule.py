"""The schedule of a step: how many rows of each value a step brings, how late they come, and which are kept.

In step t of R rows of the image a value with n rows a step and a lag of d has its rows t * n - d to (t + 1) * n - d.
Lags and kept rows are constants, and do not depend on R. Rows before the first and after the last of the map are
computed like others, and whatever reads them counts them as the edge of the map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm

from ...errors import TiledSEError
from ..graph import Node, RowGraph
from ..maps import Between, First, Table
from .lags import cheapest_lags
from .reach import first, stretch, until


@dataclass(frozen=True)
class Track:
    """A value in steps.

    Args:
        rows: Rows that a step brings; 0 for a value without rows, such as a pooled vector.
        lag: How many rows later than the image they come.
        kept: Rows before the step that some layer reads.
        per: Rows of the image for one of its rows.
        again: Whether those are made once more, and not kept; of the image, whether they are given once more.
    """

    rows: int
    lag: int
    kept: int
    per: Fraction
    again: bool = False


@dataclass(frozen=True)
class Schedule:
    """How a network runs in steps.

    Args:
        rows: Rows of the image in a step.
        unit: The fewest that are possible; ``rows`` is a multiple of it.
        tracks: By value; None where it has no rows.
        window: Rows of the image that a step reads, those before it among them.
    """

    rows: int
    unit: int
    tracks: list[Track | None]
    window: int

    def track(self, value: int) -> Track:
        """Of a value that has rows."""
        found = self.tracks[value]
        assert found is not None
        return found


def schedule(graph: RowGraph, rows: int | None = None) -> Schedule:
    """Make the schedule of a network.

    Args:
        graph: Its row graph.
        rows: Rows of the image in a step; the fewest that are possible if left out.

    Raises:
        TiledSEError: a layer that is not local in rows, with what it would hold, or rows that are no multiple of what
            strides and tiles ask for.
    """
    pace = _paces(graph)
    unit = lcm(*(per.numerator for per in pace if per is not None))
    if rows is None:
        rows = unit
    if rows < 1 or rows % unit:
        raise TiledSEError(
            f"expected rows in multiples of {unit}, which strides and tiles ask for, got {rows}; "
            f"give {max(unit, rows // unit * unit)}, or leave it out"
        )
    lags = cheapest_lags(graph, pace, rows)
    tracks: list[Track | None] = [
        None if per is None else Track(int(rows / per), lag, 0, per) for per, lag in zip(pace, lags.rows)
    ]
    # Backwards: rows that a layer makes once more are rows that it reads once more.
    for value in reversed(range(len(graph.values))):
        source = tracks[value]
        if source is not None:
            users = graph.values[value].users
            kept = max([0, *(_read_before(graph, tracks, value, *user) for user in users)])
            tracks[value] = replace(
                source, kept=kept, again=kept > 0 and (value == 0 or value not in lags.kept)
            )
    return Schedule(rows, unit, tracks, _window(graph, tracks))


def _window(graph: RowGraph, tracks: list[Track | None]) -> int:
    """Rows of the image, from the first that a step reads to the last."""
    image = tracks[0]
    assert image is not None
    ends = [image.rows if graph.values[0].outputs else 0]
    for index, operand in graph.values[0].users:
        node = graph.nodes[index]
        out = tracks[node.output]
        if out is None or node.kind == "squeeze":  # sums take in the rows of a step, and each once
            ends.append(image.rows)
        else:
            ends.append(until(node.maps[operand], out.rows - out.lag))
    return image.kept + max(ends)


def _read_before(graph: RowGraph, tracks: list[Track | None], value: int, index: int, operand: int) -> int:
    """Rows of earlier steps that a node reads."""
    node, source = graph.nodes[index], tracks[value]
    out = tracks[node.output]
    assert source is not None
    if out is None or node.kind == "squeeze":
        return 0  # sums take rows in as they come
    again = out.kept if out.again else 0
    return -source.lag - first(node.maps[operand], -out.lag - again)


def _paces(graph: RowGraph) -> list[Fraction | None]:
    """By value, rows of the image for one row; None for a value without rows."""
    pace: list[Fraction | None] = [Fraction(1), *[None] * (len(graph.values) - 1)]
    for node in graph.nodes:
        if node.absorbs or all(pace[i] is None for i in node.inputs):
            if node.squeeze is not None:
                tile = node.squeeze[0]
                raise _held(
                    graph, node, f"block '{node.block}' has the tile {tile}, which sees the whole map"
                )
            continue
        found = set()
        for value, how in zip(node.inputs, node.maps):
            per = pace[value]
            if isinstance(how, Between):
                raise _held(graph, node, f"block '{node.block}' has one gate for all strips")
            if per is None or isinstance(how, First):
                raise _held(graph, node, f"'{node.name}' joins a map with a mean of the whole of one")
            if isinstance(how, Table):
                a, b = graph.values[value].height, graph.values[node.output].height
                raise TiledSEError(
                    f"layer '{node.name}' brings {a} rows to {b}, which no whole factor does; a step takes whole "
                    "factors: give a height that the strides divide"
                )
            by = stretch(how)
            if by is None:
                raise _held(graph, node, f"layer '{node.name}' ({node.kind}) is not local in rows")
            found.add(per * by)
        if len(found) != 1:
            raise TiledSEError(f"layer '{node.name}' joins maps of different strides; it cannot run in steps")
        if node.needs_height and _at_its_place(node):
            raise TiledSEError(f"{node.needs_height}; a step is the same for all rows")
        pace[node.output] = found.pop()
    return pace


def _at_its_place(node: Node) -> bool:
    """Whether a node gives each row of the map something of its own, which the rows of a step do not know."""
    return not node.numbers and (node.kind in ("join", "repeat") or node.kind == "window")


def _held(graph: RowGraph, node: Node, why: str) -> TiledSEError:
    # What waits is the largest map that the node, or those who read what it makes, read.
    readers = [node, *(graph.nodes[i] for i, _ in graph.values[node.output].users)]
    elements = max(
        graph.values[i].height * graph.values[i].row_elements for reader in readers for i in reader.inputs
    )
    return TiledSEError(
        f"{why}: it would hold {elements:,} elements at {graph.shape[2]}x{graph.shape[3]}, and more the taller the "
        "image; a step holds a fixed number of rows. Give it strips of rows, or stream without a step"
    )
