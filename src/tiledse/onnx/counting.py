"""Count parameters and multiply-adds of an ONNX network, by the rules of ``tiledse.networks.counting``.

A file holds what its exporter left. Where a batch normalisation was folded into a convolution, its two parameters a
channel have become one bias: the file has one parameter a channel fewer than the PyTorch network, and the bias costs
one addition an output. Nothing in a file tells such a bias from another, so the file is counted as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import onnx_ir as ir

from ..plan import Totals
from .constants import Constants
from .excitation import ExcitationReader
from .model import OnnxModel
from .shapes import Shapes

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Integer twins of the layers: where the weights stand among their inputs.
_INTEGER = {"QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3, "MatMulInteger": 1}
_UNCOUNTED = {"Einsum", "LSTM", "GRU", "RNN", "DeformConv", "GridSample", "Attention", "Loop", "Scan", "If"}
# Inputs that are parameters whatever their size; the rest of the operators' constants count from two elements on,
# so that the 3 and the 6 of a hard sigmoid do not.
_PARAMETERS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1), "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "GroupNormalization": (1, 2), "PRelu": (1,),
    "QLinearConv": (3, 8), "ConvInteger": (1,), "QLinearMatMul": (3,), "MatMulInteger": (1,), "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3), "RNN": (1, 2, 3), "DeformConv": (1, 3),
}  # fmt: skip
_VECTORS = {"Add", "Sub", "Mul", "Div", "Gather", "Concat"}


def count(model: OnnxModel, shapes: Shapes, constants: Constants, means: Collection[ir.Node] = ()) -> Totals:
    """Parameters and MACs of a network as it stands, for one image; ``means`` pool, which counts nothing."""
    reader = ExcitationReader(constants, shapes)
    parameters: set[ir.Value] = set()
    macs, uncounted = 0, dict[str, None]()
    for node in model.ir.graph:
        if node in means or (node.outputs and node.outputs[0] in constants):
            continue
        parameters.update(_parameters(node, constants, shapes))
        if node.domain not in ("", "ai.onnx"):
            uncounted[f"{node.domain}.{node.op_type}"] = None
        elif node.op_type in _LAYERS or node.op_type in _INTEGER:
            here = _macs(node, shapes, constants, reader)
            if here is None:
                uncounted[node.op_type] = None
            else:
                macs += here
        elif node.op_type in _UNCOUNTED:
            uncounted[node.op_type] = None
    params = sum(prod(shapes.of(v) or _stored(v)) for v in parameters)
    return Totals(params, macs // shapes.image.batch, tuple(uncounted))


def _parameters(node: ir.Node, constants: Constants, shapes: Shapes) -> set[ir.Value]:
    slots = _PARAMETERS.get(node.op_type)
    found = set()
    for i, value in enumerate(node.inputs):
        if value is None or value not in constants:
            continue
        leaf = constants.leaf(value)
        if slots is not None and i in slots:
            found.add(leaf)
            continue
        real = leaf.dtype is not None and leaf.dtype.is_floating_point()
        if node.op_type in _VECTORS and real and prod(shapes.of(leaf) or _stored(leaf)) > 1:
            found.add(leaf)
    return found


def _stored(value: ir.Value) -> tuple[int, ...]:
    tensor = ir.convenience.get_const_tensor(value)
    return (0,) if tensor is None else tensor.numpy().shape


def _macs(node: ir.Node, shapes: Shapes, constants: Constants, reader: ExcitationReader) -> int | None:
    out = shapes.of(node.outputs[0])
    if out is None:
        return None
    bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if node.op_type in _INTEGER:
        weight = shapes.of(node.inputs[_INTEGER[node.op_type]])
        if weight is None:
            return None
        biased = node.op_type == "QLinearConv" and len(node.inputs) > 8 and node.inputs[8] is not None
        dense = prod(weight[1:]) if "Conv" in node.op_type else weight[-2]
        return prod(out) * (dense + biased)
    first, weight = shapes.of(node.inputs[0]), shapes.of(node.inputs[1])
    if first is None or weight is None:
        return None
    if node.op_type == "ConvTranspose":
        products, outputs = prod(first) * prod(weight[1:]), out[1]
    elif node.op_type == "Conv":
        products, outputs = prod(out) * prod(weight[1:]), out[1]
    else:
        products, outputs = prod(out) * first[-1], out[-1]
        if node.op_type == "Gemm":
            transposed = node.attributes.get("transA")
            if transposed is not None and transposed.as_int():
                products = prod(out) * first[0]
        else:
            bias = False
    biased = bias or (node.outputs[0] not in constants and reader.bias_after(node, outputs) is not None)
    return products + (prod(out) if biased else 0)
