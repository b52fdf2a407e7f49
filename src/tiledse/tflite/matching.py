"""Whether what stands in a graph is what ``emit.py`` writes for a tile: it is written again, and compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..correction import Correction
from ..tile import Tile
from .emit import write_repeat, write_squeeze
from .graph import Graph
from .model import TfliteModel
from .writer import Writer

_DEEPEST = 24


def same_squeeze(
    graph: Graph, x: int, descriptors: int, tile: Tile, pool: str, learnt: Correction | None
) -> bool:
    """Whether descriptors come of a map as those of a tile do."""
    scratch, copy = _scratch(graph)
    write_squeeze(Writer(scratch, 0, "scratch"), x, tile, copy[descriptors], pool, learnt)
    return _key(graph, descriptors, x) == _key(Graph(scratch.model), copy[descriptors], x)


def same_repeat(graph: Graph, gates: int, operand: int, tile: Tile, height: int, width: int) -> bool:
    """Whether an operand of the product holds gates repeated over their tiles."""
    scratch, _ = _scratch(graph)
    repeated = write_repeat(Writer(scratch, 0, "scratch"), gates, tile, height, width)
    return _key(graph, operand, gates) == _key(Graph(scratch.model), repeated, gates)


def _scratch(graph: Graph) -> tuple[Graph, Any]:
    """A copy of the graph without operators, to write into; and its descriptors, which are the same tensors."""
    clone: TfliteModel = graph.model.clone()
    clone.tree.subgraphs[0].operators = []
    return Graph(clone), range(len(graph.tensors))


def _key(graph: Graph, tensor: int, leaf: int, depth: int = 0) -> Any:
    """A tensor as the expression that it is of a leaf."""
    if tensor == leaf:
        return "leaf"
    made = graph.producer.get(tensor)
    if made is None:
        array = graph.constant(tensor)
        return tensor if array is None else (str(array.dtype), array.shape, array.tobytes())
    if depth > _DEEPEST:
        return "deep"
    options = made.builtinOptions
    said = () if options is None else tuple(sorted((k, _plain(v)) for k, v in vars(options).items()))
    inputs = tuple(_key(graph, int(t), leaf, depth + 1) for t in made.inputs)
    return graph.kind(made), said, inputs


def _plain(value: Any) -> Any:
    return tuple(np.asarray(value).tolist()) if isinstance(value, (list, np.ndarray)) else value
