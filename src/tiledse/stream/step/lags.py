"""Lags of a schedule: how late the rows of each value come, so that the fewest elements are kept and copied.

Every layer may wait longer than it must; then others keep fewer rows. Where gates wait for strips, whole rows of a map
have to wait somewhere: before the layers in between, after them, or in the narrower map of a bottleneck, which is the
cheapest place. That is retiming (Leiserson and Saxe, 1991), and a small linear program in whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ...errors import TiledSEError
from ..graph import Node, RowGraph
from ..maps import SAME, Linear, Repeat, RowMap, Spread, Strips, Window
from .reach import reach

# A lag is looked for row by row. No window is so tall.
_LONGEST_LAG = 1 << 20
# How long a multiply-add takes, in times of copying an element (ONNX Runtime and OpenVINO, MobileNetV3-L, one thread).
MAC_COST = 0.03
# What of a solution may be left on the table, and how long it is looked for.
_GAP, _SECONDS = 0.01, 20.0


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


def cheapest_lags(graph: RowGraph, pace: Sequence[Fraction | None], rows: int) -> list[int]:
    """The lags at which a step keeps and copies the fewest elements; the smallest ones where none are found."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    least = least_lags(graph, pace)
    values = [i for i, per in enumerate(pace) if per is not None]
    place = {value: i for i, value in enumerate(values)}
    count = len(values)
    # Variables: lags (of gates, in strips), rows kept, whether any are kept.
    scale = np.ones(count)
    for node in graph.nodes:
        if pace[node.output] is not None:
            scale[place[node.output]] = align_of(node)
    lines: list[tuple[list[tuple[int, float]], float]] = []  # sum of (variable, factor) is at least a number

    def lag(value: int, factor: float) -> tuple[int, float]:
        return place[value], factor * scale[place[value]]

    def kept(value: int, factor: float) -> tuple[int, float]:
        return count + place[value], factor

    cost = np.zeros(3 * count)
    most = np.zeros(count)
    for value in values:
        i, wide = place[value], graph.values[value].row_elements
        per = pace[value]
        assert per is not None
        again = may_run_again(graph, value)
        cost[count + i] = wide * (
            1.0 if again is None else max(1.0, MAC_COST * macs_a_row(graph, again) / wide)
        )
        cost[2 * count + i] = 0.0 if again is not None else wide * float(rows / per)
        cost[i] = 1e-3 * wide * scale[i]
        most[i] = 64 + 4 * max(least)
    for node in graph.nodes:
        if pace[node.output] is None:
            continue
        for value, how in zip(node.inputs, node.maps):
            stride, more, before = _line(how)
            # stride * lag of the output >= step * lag of the input + more
            up = how.stride if isinstance(how, Spread) else how.factor if isinstance(how, Linear) else 1
            up = how.rows if isinstance(how, Repeat) else up
            lines.append(([lag(node.output, stride), lag(value, -up)], more))
            if node.kind == "squeeze":
                continue
            again = may_run_again(graph, node.output)
            extra = [] if again is None else [kept(node.output, -stride)]
            lines.append(([kept(value, up), lag(value, up), lag(node.output, -stride), *extra], before))
    for value in values:
        lines.append(([(2 * count + place[value], most[place[value]]), kept(value, -1.0)], 0.0))
    where = [(row, column, factor) for row, (terms, _) in enumerate(lines) for column, factor in terms]
    at = tuple(np.array(part) for part in zip(*where))
    matrix = csr_array((at[2], (at[0], at[1])), shape=(len(lines), 3 * count))
    high = np.concatenate([most, most, np.ones(count)])
    high[place[0]] = 0
    found = milp(
        cost,
        constraints=LinearConstraint(matrix, np.array([number for _, number in lines])),
        integrality=np.ones(3 * count),
        bounds=Bounds(np.zeros(3 * count), high),
        options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
    )
    if found.x is None:
        return least
    lags = [0] * len(graph.values)
    for value in values:
        lags[value] = round(found.x[place[value]]) * int(scale[place[value]])
    for node in graph.nodes:  # in the exact words of the row maps
        if pace[node.output] is not None and not all(
            reach(how, -lags[node.output]) <= -lags[value] for value, how in zip(node.inputs, node.maps)
        ):
            return least
    return lags


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


def may_run_again(graph: RowGraph, value: int) -> Node | None:
    """The layer that can make the last rows of a value once more in the next step, in place of keeping them.

    A 1x1 convolution from a narrow map to a wide one, that a window reads: keeping the narrow one is cheaper.
    """
    made = graph.values[value]
    if made.maker < 0 or made.outputs or len(made.users) != 1 or made.row_dim is None:
        return None
    node, user = graph.nodes[made.maker], graph.nodes[made.users[0][0]]
    if (
        node.kind != "row"
        or len(node.inputs) != 1
        or node.maps[0] != SAME
        or user.kind not in ("window", "pad")
    ):
        return None
    source = graph.values[node.inputs[0]]
    return node if source.row_dim is not None and source.row_elements < made.row_elements else None


def macs_a_row(graph: RowGraph, node: Node) -> float:
    """Multiply-adds for a row of a node's output."""
    return node.macs / graph.values[node.output].height
