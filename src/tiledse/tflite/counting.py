"""Count parameters and multiply-adds of a TensorFlow Lite network, by the rules of ``tiledse.networks.counting``.

A file is counted as it is: normalisations that its converter folded are biases now, each one addition an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ..plan import Totals
from .graph import Graph

_LAYERS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D"}
_UNCOUNTED = {
    "BATCH_MATMUL", "BIDIRECTIONAL_SEQUENCE_LSTM", "CONV_3D_TRANSPOSE", "IF", "LSTM", "RNN", "STABLEHLO_COMPOSITE",
    "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "WHILE",
}  # fmt: skip
_VECTORS = {"ADD", "SUB", "MUL", "DIV", "PRELU"}


def count(graph: Graph, without: Sequence[Any] = ()) -> Totals:
    """Parameters and MACs of a network for one image.

    Args:
        graph: The network.
        without: Operators that are not counted.
    """
    parameters: set[int] = set()
    skipped = {id(op) for op in without}
    macs, uncounted = 0, dict[str, None]()
    for op in graph.operators:
        kind = graph.kind(op)
        if id(op) in skipped:
            continue
        parameters.update(_parameters(graph, op, kind))
        if kind in _LAYERS:
            macs += _macs(graph, op, kind)
        elif kind in _UNCOUNTED or kind.startswith("custom"):
            uncounted[kind] = None
    first = graph.shape(graph.inputs[0])
    batch = max(1, first[0]) if len(first) > 1 else 1
    return Totals(sum(prod(graph.shape(t)) for t in parameters), macs // batch, tuple(uncounted))


def _parameters(graph: Graph, op: Any, kind: str) -> set[int]:
    found = set()
    for tensor in map(int, op.inputs if op.inputs is not None else ()):
        if tensor < 0 or not graph.is_constant(tensor):
            continue
        leaf = graph.leaf(tensor)
        layer = kind in _LAYERS and not (kind == "TRANSPOSE_CONV" and tensor == int(op.inputs[0]))
        vector = kind in _VECTORS and prod(graph.shape(leaf)) > 1
        if layer or vector or kind.startswith("custom"):
            found.add(leaf)
    return found


def _macs(graph: Graph, op: Any, kind: str) -> int:
    out = prod(graph.shape(int(op.outputs[0])))
    weight = graph.shape(int(op.inputs[1]))
    if kind == "TRANSPOSE_CONV":  # its inputs: shape, weights, map, bias
        biased = len(op.inputs) > 3 and int(op.inputs[3]) >= 0
        return prod(graph.shape(int(op.inputs[2]))) * prod(weight[:3]) + biased * out
    biased = len(op.inputs) > 2 and int(op.inputs[2]) >= 0
    if kind == "DEPTHWISE_CONV_2D":
        each = prod(weight[1:3])
    elif kind == "CONV_3D":
        each = prod(weight[:4])
    else:
        each = prod(weight[1:])  # of one group, the channels that a filter sees
    return out * (each + biased)
