"""PipelineBuffer: what the whole pipeline of a network holds at the least, for one plan of row strips after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import TiledSEError
from ..plan import Plan
from .building import build_graph
from .graph import Node, RowGraph
from .hardware import Hardware
from .maps import Repeat, Strips
from .row_times import jointly_minimum_rows
from .stages import build_pipeline


class PipelineBuffer:
    """Counts the elements that all FIFOs of a pipeline have room for at their minimum.

    Line buffers, rows on their way between layers, shortcuts and gates: ``fifo`` of ``simulate(..., fifos="minimum")``.
    The network is traced once; another plan only changes which rows its squeezes and gates wait for, so a plan takes
    some hundredths of a second where a trace takes seconds.

    Args:
        model: The network, SE or converted, or what ``tiledse.open`` takes: of PyTorch or ONNX; it is left as it was.
        plan: From ``find`` on it; its tiles do not matter.

    Raises:
        TiledSEError: the network cannot be traced, or its excitations cannot be followed.

    Example:
        >>> import timm, tiledse as ts
        >>> model = timm.create_model("lcnet_050")
        >>> plan = ts.find(model, (3, 64, 64)).with_tile("2xW")
        >>> elements = PipelineBuffer(model, plan)
        >>> elements(plan) == ts.simulate(model, plan, fifos="minimum").fifo
        True
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        self._rows = build_graph(model, plan.with_tile("1xW"))
        self._known: dict[tuple[Strips, ...], int] = {}

    def __call__(self, plan: Plan) -> int:
        """Elements of one image, with the tiles of the plan.

        Raises:
            TiledSEError: a tile that is no strip of rows.
        """
        strips = _strips(plan)
        key = tuple(strips.values())
        if key not in self._known:
            pipeline = build_pipeline(retiled(self._rows, strips), Hardware(multipliers=1 << 20))
            rows = jointly_minimum_rows(pipeline)
            self._known[key] = sum(n * s.row_elements for n, s in zip(rows, pipeline.stages, strict=True))
        return self._known[key]


def retiled(graph: RowGraph, strips: Mapping[str, Strips]) -> RowGraph:
    """A graph that was traced with ``1xW`` as it would be with other row strips, to count with; it does not compute.

    Args:
        graph: The graph.
        strips: By block, which rows its gates wait for.

    Raises:
        TiledSEError: an excitation whose rows do not follow from its strips.
    """
    values, nodes = list(graph.values), list(graph.nodes)
    behind: dict[int, int] = {}  # values between a squeeze and its gate, with their rows
    for index, node in enumerate(graph.nodes):
        maps = strips.get(node.block or "")
        if node.kind == "squeeze" and maps is not None:
            nodes[index] = replace(node, maps=(maps,))
            behind[node.output] = maps.height(values[node.inputs[0]].height)
        elif node.kind == "gate" and maps is not None:
            nodes[index] = replace(node, maps=(node.maps[0], Repeat(maps.rows)))
            continue
        elif any(i in behind for i in node.inputs):
            behind[node.output] = _rows_behind(node, behind)
        else:
            continue
        made = values[node.output]
        if made.row_dim is None:
            raise TiledSEError(
                f"'{node.name}' gives no rows of strips; the pipeline's buffer cannot be counted"
            )
        shape = list(made.shape)
        shape[made.row_dim] = behind[node.output]
        values[node.output] = replace(made, shape=tuple(shape))
    return replace(graph, values=values, nodes=nodes)


def _strips(plan: Plan) -> dict[str, Strips]:
    for block, tile in plan:
        if tile.width is not None or tile.single:
            raise TiledSEError(
                f"block '{block.name}' has the tile {tile}: the pipeline's buffer is counted for strips of rows, kxW, "
                "kxW:running, kxW:window or HxW"
            )
    # A tile that sees all of a map is one strip, which waits for nothing past it.
    tall = {block.name: tile.size(block.height, block.width)[0] for block, tile in plan}
    return {
        block.name: Strips(tall[block.name], tile.ahead if tall[block.name] < block.height else 0)
        for block, tile in plan
    }


def _rows_behind(node: Node, behind: dict[int, int]) -> int:
    rows = {how.height(behind[i]) for i, how in zip(node.inputs, node.maps) if i in behind}  # type: ignore[union-attr]
    if len(rows) != 1 or node.whole or node.absorbs:
        raise TiledSEError(
            f"'{node.name}' is an excitation that mixes strips; the pipeline's buffer cannot be counted"
        )
    return rows.pop()
