"""Lags of a schedule: how late the rows of each value come, so that the fewest elements are kept and copied.

Every layer may wait longer than it must; then others keep fewer rows. Where gates wait for strips, whole rows of a map
have to wait somewhere: before the layers in between, after them, or in the narrower map of a bottleneck, which is the
cheapest place. That is retiming (Leiserson and Saxe, 1991), and a small linear program in whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ...errors import TiledSEError
from ..graph import Node, RowGraph
from ..maps import Linear, Repeat, RowMap, Spread, Strips, Window
from .reach import reach

# A lag is looked for row by row. No window is so tall.
_LONGEST_LAG = 1 << 20
# Costs in times of copying an element, from profiles of ONNX Runtime on MobileNetV3-L (one thread): a multiply-add,
# an element that a layer reads or writes, one of a map to which rows are joined (the memory layout is changed for
# that, and back), and one of a map that is cut.
_MAC, _PASS, _JOINED, _CUT = 0.08, 0.8, 3.0, 2.0
# What of a solution may be left on the table, and how many nodes of its search tree are looked at. No clock: the same
# network gives the same step on a busy machine. PP-OCR's detector, the largest tried, takes 659 nodes and 7 s.
_GAP, _NODES = 0.01, 2000


@dataclass(frozen=True)
class Lags:
    """How late the rows of each value come, and where rows of earlier steps are from.

    Args:
        rows: By value, the lag.
        kept: Values whose last rows are handed to the next step; those of others are made again where they are read.
    """

    rows: list[int]
    kept: frozenset[int]


def align_of(node: Node) -> int:
    """What the lag of a node's output is a multiple of: a gate's, of its strips."""
    if node.kind != "gate":
        return 1
    return max([how.rows for how in node.maps if isinstance(how, Repeat)], default=1)


def least_lags(graph: RowGraph, pace: Sequence[Fraction | None]) -> list[int]:
    """The smallest lags at which all rows that are read have come."""
    lags = [0] * len(graph.values)
    for node in graph.nodes:
        if pace[node.output] is None:
            continue
        for lag in range(0, _LONGEST_LAG, align_of(node)):
            if all(reach(how, -lag) <= -lags[value] for value, how in zip(node.inputs, node.maps)):
                lags[node.output] = lag
                break
        else:
            raise TiledSEError(
                f"layer '{node.name}' waits for more than {_LONGEST_LAG} rows; it cannot run in steps"
            )
    return lags


def cheapest_lags(graph: RowGraph, pace: Sequence[Fraction | None], rows: int) -> Lags:
    """What takes the least time in a step of so many rows; the smallest lags where no solution is found.

    The image costs nothing: those who run a step hand it the rows before it once more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    least = least_lags(graph, pace)
    values = [i for i, per in enumerate(pace) if per is not None]
    reads = [
        (node, value, how)
        for node in graph.nodes
        if pace[node.output] is not None and node.kind != "squeeze"
        for value, how in zip(node.inputs, node.maps)
    ]
    place, count = {value: i for i, value in enumerate(values)}, len(values)
    # Variables: by value its lag (of gates, in strips), rows read before the step, those of them made again, and
    # whether they are kept; by read whether it is of a part.
    scale = np.ones(count)
    for node in graph.nodes:
        if pace[node.output] is not None:
            scale[place[node.output]] = align_of(node)
    lines: list[tuple[list[tuple[int, float]], float]] = []  # sum of (variable, factor) is at least a number

    def lag(value: int, factor: float) -> tuple[int, float]:
        return place[value], factor * scale[place[value]]

    def before(value: int, factor: float) -> tuple[int, float]:
        return count + place[value], factor

    def again(value: int, factor: float) -> tuple[int, float]:
        return 2 * count + place[value], factor

    size = 4 * count + len(reads)
    # No lag is much longer than the longest that must be, in rows of the image.
    longest = max(float(least[value] * (pace[value] or 0)) for value in values)
    most = np.array([16 + 1.5 * longest / float(pace[value] or 1) for value in values])
    cost, high = np.zeros(size), np.ones(size)
    high[: 3 * count] = np.tile(most, 3)
    high[:count] /= scale
    high[place[0]] = 0
    for value in values:
        i, wide, per = place[value], graph.values[value].row_elements, pace[value]
        assert per is not None
        cost[i] = 1e-3 * wide * scale[i]
        cost[count + i] = 1e-3 * wide
        cost[3 * count + i] = _JOINED * wide * float(rows / per) if value else 0.0
        if may_run_again(graph, value):
            cost[2 * count + i] = _cost_of_a_row(graph, graph.nodes[graph.values[value].maker])
        else:
            high[2 * count + i] = 0
        lines.append(([again(value, 1), before(value, -1), (3 * count + i, most[i])], 0))
    for node in graph.nodes:
        if pace[node.output] is not None:
            for value, how in zip(node.inputs, node.maps):
                stride, more, _ = _line(how)
                lines.append(([lag(node.output, stride), lag(value, -_up(how))], more))
    for number, (node, value, how) in enumerate(reads):
        (stride, more, top), up, per = _line(how), _up(how), pace[value]
        assert per is not None
        above = [before(value, up), lag(value, up), lag(node.output, -stride), again(node.output, -stride)]
        lines.append((above, top))
        if value and isinstance(how, Window):
            # Cut where more rows are there above or below than it reads: the two slacks as one sum.
            cut = 4 * count + number
            cost[cut] = _CUT * graph.values[value].row_elements * float(rows / per)
            lines.append(
                ([(cut, most[place[value]]), before(value, -1), again(node.output, stride)], -top - more)
            )
    where = [(row, column, factor) for row, (terms, _) in enumerate(lines) for column, factor in terms]
    lines_at, columns, factors = (np.array(part) for part in zip(*where))
    matrix = csr_array(
        (factors, (lines_at.astype(np.int32), columns.astype(np.int32))), shape=(len(lines), size)
    )
    found = milp(
        cost,
        constraints=LinearConstraint(matrix, np.array([number for _, number in lines])),
        integrality=np.ones(size),
        bounds=Bounds(np.zeros(size), high),
        options={"node_limit": _NODES, "mip_rel_gap": _GAP},
    )
    smallest = Lags(least, frozenset(values))
    if found.x is None:
        return smallest
    lags = [0] * len(graph.values)
    for value in values:
        lags[value] = round(found.x[place[value]]) * int(scale[place[value]])
    for node in graph.nodes:  # in the exact words of the row maps
        if pace[node.output] is not None and not all(
            reach(how, -lags[node.output]) <= -lags[value] for value, how in zip(node.inputs, node.maps)
        ):
            return smallest
    kept = frozenset(v for v in values if found.x[3 * count + place[v]] > 0.5 or not may_run_again(graph, v))
    return Lags(lags, kept)


def _up(how: RowMap) -> int:
    """Rows of the output for one of the input."""
    if isinstance(how, Spread):
        return how.stride
    return how.factor if isinstance(how, Linear) else how.rows if isinstance(how, Repeat) else 1


def _line(how: RowMap) -> tuple[int, int, int]:
    """A row map as lines: the factor of the output's lag, what the input's must exceed, and rows read before."""
    if isinstance(how, Window):
        return how.stride, how.size - how.stride - how.top - min(how.bottom, 0), how.top
    if isinstance(how, Strips):
        return how.rows, how.ahead if how.ahead > -how.rows else 0, 0
    if isinstance(how, Repeat):
        return 1, 0, 0
    if isinstance(how, Spread):
        return 1, how.top - how.stride * min(how.bottom, 0), how.size - how.top - how.stride
    assert isinstance(how, Linear)
    return 1, how.factor if how.corner else (how.factor - 1) // 2 + 1, 0


def may_run_again(graph: RowGraph, value: int) -> bool:
    """Whether a layer can make the last rows of a value once more in the next step, in place of keeping them."""
    made = graph.values[value]
    if made.maker < 0 or made.outputs or made.row_dim != 2 or len(made.shape) != 4:
        return False
    node = graph.nodes[made.maker]
    return node.kind in ("row", "window", "join", "pad", "gate") and all(
        isinstance(how, (Window, Repeat)) and graph.values[i].row_dim == 2
        for i, how in zip(node.inputs, node.maps)
    )


def _cost_of_a_row(graph: RowGraph, node: Node) -> float:
    """Of making one row of a node's output once more."""
    out = graph.values[node.output]
    touched = out.row_elements + sum(graph.values[i].row_elements for i in node.inputs)
    return _MAC * node.macs / out.height + _PASS * touched
