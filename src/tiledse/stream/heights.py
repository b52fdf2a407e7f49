"""What the height of an image changes: a plan's map sizes, and whether a network runs without knowing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import lcm
from typing import Any

from ..errors import TiledSEError
from ..plan import Plan
from ..se_block import SEBlock
from .frames import row_shape
from .graph import RowGraph
from .maps import SAME, Linear, Repeat, Spread, Window


def sized_plan(plan: Plan, graph: RowGraph, height: int | None = None) -> Plan:
    """The plan with the map sizes of an image's size, the graph's if left out; totals of another size are left out."""
    rows = graph.shape[2] if height is None else height
    heights = heights_at(graph, rows)
    sizes = {
        name: (heights[node.inputs[0]], *graph.values[node.inputs[0]].shape[3:])
        for name, node in graph.gates.items()
    }
    blocks = tuple(b if b.name not in sizes else _of_map(b, sizes[b.name]) for b in plan.blocks)
    size: Any = (graph.shape[1], rows, *(row_shape(plan) if len(row_shape(plan)) != 1 else graph.shape[3:]))
    same = size == plan.input_size
    return replace(plan, blocks=blocks, input_size=size, network=plan.network if same else None)


def _of_map(block: SEBlock, rows: Sequence[int]) -> SEBlock:
    """A block for a map of other rows; the axes behind them are joined in a row graph, and stay what they are."""
    return block.of_size(rows if block.axes == 2 else (rows[0], *block.sides[1:]))


def check_free(graph: RowGraph) -> None:
    """No layer may say that it needs the height."""
    for node in graph.nodes:
        if node.needs_height:
            raise TiledSEError(f"the height must be known: {node.needs_height}; give height=ROWS")


def another(graph: RowGraph) -> int:
    """Rows more than the graph was traced at, at which padding falls otherwise and no map has as many rows."""
    strides = {0: 1}
    for node in graph.nodes:
        how = node.maps[0]
        own = strides[node.inputs[0]] * how.stride if isinstance(how, Window) else strides[node.inputs[0]]
        strides[node.output] = own
    return 1 + lcm(*strides.values())


def check_unknown(graph: RowGraph, taller: RowGraph) -> None:
    """Two traces, of heights ``another`` apart, must read rows in the same way; else the height must be known."""
    if len(graph.nodes) != len(taller.nodes):
        raise TiledSEError(
            "the height must be known: the network has other layers at another height; give height=ROWS"
        )
    for node, other in zip(graph.nodes, taller.nodes):
        same = len(node.maps) == len(other.maps) and all(
            a == b
            for a, b in zip(node.maps, other.maps)
            if isinstance(a, (Window, Repeat, Spread, Linear)) or type(a) is not type(b)
        )
        if node.sizes != other.sizes:
            raise TiledSEError(
                f"the height must be known: layer '{node.name}' has a number in it that depends on the height; give "
                "height=ROWS"
            )
        if not same:
            raise TiledSEError(
                f"the height must be known: layer '{node.name}' pads by the height of its map (TensorFlow's 'same' "
                "padding does); give height=ROWS"
            )


def heights_at(graph: RowGraph, height: int) -> dict[int, int]:
    """Rows of each value, for an image of a height that may be another than the graph was traced at."""
    heights = {0: height}
    for node in graph.nodes:
        how = node.maps[0]
        heights[node.output] = how.height(heights[node.inputs[0]]) if hasattr(how, "height") else 1
    return heights


def check_joins(graph: RowGraph, height: int) -> None:
    """Maps that are added or put side by side must have as many rows as each other.

    Args:
        graph: Traced at another height.
        height: Rows of an image.

    Raises:
        TiledSEError: they do not; the network itself does not take this height.
    """
    heights = heights_at(graph, height)
    for node in graph.nodes:
        if node.kind == "join" and all(how == SAME for how in node.maps):
            found = sorted({heights[i] for i in node.inputs})
            if len(found) > 1:
                raise TiledSEError(
                    f"the network does not take an image of {height} rows: layer '{node.name}' would join a map of "
                    f"{found[0]} rows with one of {found[-1]}; pad the image to a height that the strides divide"
                )
