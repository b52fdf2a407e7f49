"""Cut a part out of a TensorFlow Lite network, to run it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .graph import Graph, Shape
from .model import TfliteModel
from .schema import schema
from .writer import Writer


def cut(
    model: TfliteModel,
    inputs: Sequence[int],
    outputs: Sequence[int],
    shapes: Mapping[int, Shape] | None = None,
) -> TfliteModel:
    """The part of a network that computes some tensors from others.

    Args:
        model: The network; it is left as it was.
        inputs: Tensors that are given.
        outputs: Tensors that are wanted.
        shapes: Other shapes of the given tensors.
    """
    clone = model.clone()
    graph = Graph(clone)
    wanted, waiting, seen = set[int](), list(outputs), set(inputs)
    while waiting:
        tensor = waiting.pop()
        made = graph.producer.get(tensor)
        if tensor in seen or made is None:
            continue
        seen.update(map(int, made.outputs))
        wanted.add(id(made))
        waiting += [int(t) for t in made.inputs if int(t) >= 0]
    main = graph.main
    writer = Writer(graph, 0, "cut")
    for tensor in inputs:
        writer.reshaped(tensor, (shapes or {}).get(tensor, graph.shape(tensor)))
    main.operators = [op for op in main.operators if id(op) in wanted]
    main.inputs, main.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    clone.tree.signatureDefs, clone.tree.metadata = [], []
    if (
        len(clone.tree.subgraphs) == 1
    ):  # subgraphs of control flow are called by number, and may use any buffer
        _drop_unused(clone, outputs)
    return replace(clone, shapes=None)


def _drop_unused(model: TfliteModel, outputs: Sequence[int]) -> None:
    """Leave out the numbers that no operator of a part takes: most of the weights."""
    main, tree = model.tree.subgraphs[0], model.tree
    used = {t for op in main.operators for t in map(int, op.inputs) if t >= 0} | set(outputs)
    kept = {main.tensors[t].buffer for t in used}
    empty = schema().BufferT()
    tree.buffers = [buffer if i in kept else empty for i, buffer in enumerate(tree.buffers)]


def needed(model: TfliteModel, outputs: Sequence[int]) -> list[int]:
    """The inputs of a network that some tensors come of."""
    graph = Graph(model)
    found, waiting, seen = list[int](), list(outputs), set[int]()
    while waiting:
        tensor = waiting.pop()
        if tensor < 0 or tensor in seen:
            continue
        seen.add(tensor)
        if tensor in graph.inputs:
            found.append(tensor)
        made = graph.producer.get(tensor)
        waiting += [] if made is None else [int(t) for t in made.inputs]
    return [tensor for tensor in graph.inputs if tensor in found]


def with_outputs(model: TfliteModel, more: Sequence[int]) -> TfliteModel:
    """A network that gives more tensors, behind its own outputs."""
    clone = model.clone()
    main = clone.tree.subgraphs[0]
    own = [int(t) for t in main.outputs]
    main.outputs = np.array([*own, *(t for t in dict.fromkeys(more) if t not in own)], np.int32)
    clone.tree.signatureDefs = []
    return clone
