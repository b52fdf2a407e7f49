"""Give one block of a TensorFlow Lite graph another tile: its squeeze, its excitation for a grid, its repetition."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..correction import Correction
from ..tile import Tile
from .emit import covers, write_repeat, write_squeeze
from .finder import Place
from .graph import Graph, Quantised, Shape
from .metadata import Stated
from .nodes import DENSE, RESHAPES
from .schema import schema
from .writer import Writer

# The version of FULLY_CONNECTED from which it keeps the axes of its input.
_KEEPS_AXES = 5


def rewrite(graph: Graph, place: Place, name: str, tile: Tile, learnt: Correction | None) -> Stated:
    """Give a block a tile; the graph is changed.

    Args:
        graph: The graph of a clone.
        place: Where the block stands in it.
        name: What its new tensors are called after.
        tile: The tile.
        learnt: The correction of its descriptors.

    Returns:
        What the file is to state of the block.
    """
    used = {t for op in graph.operators for t in map(int, op.inputs)}
    _, height, width, _ = graph.shape(place.source)
    at = graph.place(place.squeeze[0])
    _remove(graph, (*place.squeeze, *place.repeat))
    before, mean = graph.quantised(place.descriptors), place.stated.mean
    back = place.stated.pool == "MEAN" and covers(tile, height, width)
    writer = Writer(graph, at, name)
    if back and mean is not None:
        writer.reshaped(place.descriptors, graph.shape(place.descriptors), mean)
    grid = write_squeeze(writer, place.source, tile, place.descriptors, place.stated.pool, learnt)
    now = graph.quantised(place.descriptors)
    alias = _excite_grid(graph, place, grid)
    biases = dict(place.stated.biases)
    if before != now and before is not None and now is not None:
        biases = _rescale(writer, place, (before, now), {} if not back else biases)
        mean = None if back else before if place.stated.mean is None else place.stated.mean
    gate = alias.get(place.excitation.gate, place.excitation.gate)
    writer = Writer(graph, graph.place(place.product), name)
    place.product.inputs[place.slot] = write_repeat(writer, gate, tile, height, width)
    _remove_dead(graph, used)
    graph.changed()
    return Stated(tile, place.stated.pool, learnt, mean, biases)


def _excite_grid(graph: Graph, place: Place, grid: Shape) -> dict[int, int]:
    """Let the excitation of one descriptor a channel take a grid of them; reshapes are left out.

    Returns:
        By tensor that a reshape gave, what it was made from.
    """
    alias: dict[int, int] = {}
    writer = Writer(graph, 0, graph.name(place.descriptors))
    for op in place.excitation.operators:
        out = int(op.outputs[0])
        if graph.kind(op) in RESHAPES:
            source = int(op.inputs[0])
            alias[out] = alias.get(source, source)
            _remove(graph, [op])
            continue
        op.inputs = [alias.get(int(t), int(t)) for t in op.inputs]
        if graph.kind(op) == "FULLY_CONNECTED":
            op.builtinOptions = copy.copy(op.builtinOptions)
            op.builtinOptions.keepNumDims = True
            op.opcodeIndex = _version(graph, op, _KEEPS_AXES)
        elif graph.kind(op) not in DENSE:
            op.inputs = [_vector(graph, writer, t) for t in op.inputs]
        channels = _channels(graph, op, out, grid)
        writer.reshaped(out, (*grid[:3], channels))
    return alias


def _channels(graph: Graph, op: Any, out: int, grid: Shape) -> int:
    if graph.kind(op) in DENSE:
        return graph.shape(int(op.inputs[1]))[0]
    return max((graph.shape(int(t)) or (1,))[-1] for t in op.inputs if int(t) >= 0)


def _vector(graph: Graph, writer: Writer, tensor: int) -> int:
    """A constant over the channels, with the channels last; other tensors as they are."""
    shape = graph.shape(tensor) if tensor >= 0 else ()
    if tensor < 0 or not graph.is_constant(tensor) or len(shape) < 2 or shape[-1] == int(np.prod(shape)):
        return tensor
    stored = copy.copy(graph.tensors[graph.leaf(tensor)])
    stored.shape, stored.shapeSignature = np.array([int(np.prod(shape))], np.int32), None
    graph.tensors.append(stored)
    return len(graph.tensors) - 1


def _version(graph: Graph, op: Any, least: int) -> int:
    """The code of an operator in a version, or its own where that is newer."""
    codes = graph.tree.operatorCodes
    own = codes[op.opcodeIndex]
    if own.version >= least:
        return int(op.opcodeIndex)
    codes.append(schema().OperatorCodeT(own.deprecatedBuiltinCode, None, least, own.builtinCode))
    return len(codes) - 1


def _rescale(
    writer: Writer, place: Place, scales: tuple[Quantised, Quantised], old: dict[int, int]
) -> dict[int, int]:
    """Bring the biases of the layers that take the descriptors to another scale of these.

    Args:
        writer: Writes constants.
        place: The block.
        scales: The scale that the descriptors had, and the one that they have now.
        old: Biases that were written here, and those of before; they come back.

    Returns:
        New biases, and those of before.
    """
    graph, found = writer.graph, dict[int, int]()
    (before,), (now,) = scales[0].scale, scales[1].scale
    for layer in place.excitation.layers:
        op = layer.op
        if int(op.inputs[0]) != place.descriptors or not layer.bias:
            continue
        bias, weights = int(op.inputs[2]), graph.quantised(int(op.inputs[1]))
        if bias in old:
            op.inputs[2] = old[bias]
            continue
        numbers = graph.constant(bias)
        assert numbers is not None  # a layer of a quantised network
        if numbers.dtype.kind == "f" or weights is None:
            continue
        limits = np.iinfo(numbers.dtype)
        whole = np.clip(np.rint(numbers * (before / now)), limits.min, limits.max).astype(numbers.dtype)
        own = Quantised(tuple(now * s for s in weights.scale), (0,) * len(weights.scale))
        new = writer.constant("bias", whole, own)
        op.inputs[2], found[new] = new, bias
    return found


def _remove(graph: Graph, doomed: Sequence[Any]) -> None:
    gone = {id(op) for op in doomed}
    graph.operators[:] = [op for op in graph.operators if id(op) not in gone]


def _remove_dead(graph: Graph, used: set[int]) -> None:
    """Remove operators that nothing uses any more."""
    while True:
        now = {int(t) for op in graph.operators for t in op.inputs} | set(graph.outputs)
        dead = [
            op
            for op in graph.operators
            if not any(int(t) in now for t in op.outputs) and any(int(t) in used for t in op.outputs)
        ]
        if not dead:
            return
        _remove(graph, dead)


def restated(place: Place, tile: Tile, learnt: Correction | None) -> Stated:
    """What the file is to state of a block that is left as it stands."""
    return replace(place.stated, tile=tile, learnt=learnt)
