"""Constants of a graph: initialisers, Constant nodes, and what is computed from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

_RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
# Operators that hand on their first input, stored another way.
CARRIERS = {"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast", "DequantizeLinear"}


class Constants:
    """Which values of a graph never change, and what they are."""

    def __init__(self, model: ir.Model) -> None:
        self._opsets = model.opset_imports
        self._variable: set[ir.Value] = {v for v in model.graph.inputs if not v.is_initializer()}
        self._arrays: dict[ir.Value, np.ndarray | None] = {}
        for node in model.graph:
            fixed = node.domain in ("", "ai.onnx") and node.op_type not in _RANDOM
            inner = any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
            )
            if not fixed or inner or any(v in self._variable for v in node.inputs if v is not None):
                self._variable.update(node.outputs)

    def __contains__(self, value: ir.Value | None) -> bool:
        return value is not None and value not in self._variable

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """The value of a constant; None for what is none, or cannot be computed."""
        if value is None or value in self._variable:
            return None
        if value not in self._arrays:
            self._arrays[value] = self._compute(value)
        return self._arrays[value]

    def ints(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """A constant list of whole numbers."""
        array = self.array(value)
        if array is None or array.dtype.kind not in "iu":
            return None
        return tuple(int(i) for i in array.reshape(-1))

    def leaf(self, value: ir.Value) -> ir.Value:
        """The stored constant that a constant is another view of."""
        while (
            (node := value.producer()) is not None and node.op_type in CARRIERS and node.inputs[0] is not None
        ):
            value = node.inputs[0]
        return value

    def _compute(self, value: ir.Value) -> np.ndarray | None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return np.asarray(tensor.numpy())
        node = value.producer()
        if node is None:
            return None
        inputs = [None if v is None else self.array(v) for v in node.inputs]
        if any(v is not None and a is None for v, a in zip(node.inputs, inputs)):
            return None
        return run_node(node, inputs, self._opsets, value)


def run_node(
    node: ir.Node, inputs: Sequence[Any], opsets: Mapping[str, int], value: ir.Value
) -> np.ndarray | None:
    """One node on arrays, by the reference implementation of ONNX."""
    from onnx.reference import ReferenceEvaluator

    import onnx

    feeds = {v.name or "": a for v, a in zip(node.inputs, inputs) if v is not None}
    try:
        graph = onnx.helper.make_graph(
            [ir.to_proto(node)],
            "constant",
            [
                onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for k, a in feeds.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(value.name or "")],
        )
        imports = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
        proto = onnx.helper.make_model(graph, opset_imports=imports)
        result: Any = ReferenceEvaluator(proto).run([value.name or ""], feeds)
        return np.asarray(result[0])
    except Exception:  # an operator that the reference does not know: then it is no constant that we can read
        return None
