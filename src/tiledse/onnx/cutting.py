"""Cut blocks out of a network, from map to product, and run them alone in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ..errors import TiledSEError, first_line
from .model import OnnxModel
from .runner import session
from .shapes import Image, Shapes, batched, forget

Arrays = dict[str, np.ndarray]


class Ends(NamedTuple):
    """Where a block begins and ends: the names of its map and of its product."""

    source: str
    product: str


class CutOut:
    """Blocks of a network, each a function of its own map; nothing between them is run.

    Args:
        model: The network; it is left as it was.
        ends: Of the blocks.
        shapes: Of the network.

    Raises:
        TiledSEError: ONNX Runtime does not take them.
    """

    def __init__(self, model: OnnxModel, ends: Sequence[Ends], shapes: Shapes) -> None:
        clone = model.clone()
        forget(clone.ir)
        graph = clone.ir.graph
        values = ir.convenience.create_value_mapping(graph)
        self.ends = tuple(ends)
        graph.outputs.clear()
        sources = []
        for name in dict.fromkeys(end.source for end in ends):
            source = values[name]
            _join_twins(graph, source)
            # An input of its own: the map of one block may be the product of another.
            given = ir.Value(
                name=f"{name}/given", shape=ir.Shape([None] * 4), type=ir.TensorType(shapes.type(source))
            )
            source.replace_all_uses_with(given)
            graph.inputs.append(given)
            sources.append(given)
        products = [values[end.product] for end in ends]
        others = _inputs(products, sources)
        cut = ir.convenience.extract(graph, [*sources, *others], products)
        for value in cut.outputs:
            value.shape = None
        self._image = shapes.image.name
        self._others = {v.name or "": _zeros(v, shapes.image) for v in others}
        cut_model = ir.Model(cut, ir_version=clone.ir.ir_version, functions=list(clone.ir.functions.values()))
        self._session = session(OnnxModel(cut_model, None), optimise=False)

    def run(self, maps: Arrays) -> Arrays:
        """The products of maps, by name.

        Raises:
            TiledSEError: ONNX Runtime fails on them.
        """
        batch = next(iter(maps.values())).shape[0]
        feeds = {f"{name}/given": array for name, array in maps.items()}
        for name, zeros in self._others.items():
            takes_batch = zeros.ndim == 4 or name == self._image
            feeds[name] = np.repeat(zeros[:1], batch, 0) if takes_batch else zeros
        names = [end.product for end in self.ends]
        try:
            products = self._session.run(names, feeds)
        except Exception as error:
            raise TiledSEError(f"ONNX Runtime fails on it alone: {first_line(error, 160)}") from error
        return dict(zip(names, products))


def _join_twins(graph: ir.Graph, source: ir.Value) -> None:
    """Let all that dequantises what the map was dequantised from use the map itself."""
    maker = source.producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return
    for node in list(graph):
        if node is not maker and node.op_type == maker.op_type and tuple(node.inputs) == tuple(maker.inputs):
            node.outputs[0].replace_all_uses_with(source)


def _inputs(values: Iterable[ir.Value], stops: Sequence[ir.Value]) -> list[ir.Value]:
    """The inputs of the network that values are computed from, not counting what lies before ``stops``."""
    found: dict[ir.Value, None] = {}
    seen, waiting = set(stops), [v for v in values if v not in stops]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_graph_input() and not value.is_initializer():
            found[value] = None
        node = value.producer()
        for before in () if node is None else node.inputs:
            if before is not None:
                waiting.append(before)
    return list(found)


def _zeros(value: ir.Value, image: Image) -> np.ndarray:
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    if value.name == image.name:
        return np.zeros(batched(image, 1), dtype)
    return np.zeros([d if isinstance(d, int) and d > 0 else 1 for d in value.shape or ()], dtype)


def tapped(model: OnnxModel, names: Sequence[str]) -> Callable[[Arrays], Arrays]:
    """A function that runs a network and gives its outputs and some values within."""
    clone = model.clone()
    values = ir.convenience.create_value_mapping(clone.ir.graph)
    outputs = clone.ir.graph.outputs
    outputs.extend(values[name] for name in names if not values[name].is_graph_output())
    opened = session(clone, optimise=False)
    given = list(dict.fromkeys([*names, *(v.name or "" for v in outputs)]))
    return lambda feeds: dict(zip(given, opened.run(given, feeds)))
