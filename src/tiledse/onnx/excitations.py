"""The excitation of one block, as an ONNX network of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

import onnx

from .finder import Place


def excitation(place: Place, constants: Any, opset: int) -> onnx.ModelProto:
    """From descriptors (N, C, rows, cols) to gates, as a network of its own."""
    import onnx_ir as ir

    nodes = [ir.to_proto(node) for node in place.excitation.nodes]
    made = {value for node in place.excitation.nodes for value in node.outputs}
    start, gate = place.squeeze.descriptors, place.excitation.gate
    weights: dict[str, onnx.TensorProto] = {}
    for node in place.excitation.nodes:
        for value in node.inputs:
            if value is None or value in made or value is start:
                continue
            array = constants.array(value)
            assert array is not None, "an excitation takes descriptors and constants only"
            weights[value.name or ""] = onnx.numpy_helper.from_array(np.asarray(array), value.name)
    image = onnx.helper.make_tensor_value_info(
        start.name or "", onnx.TensorProto.FLOAT, ["n", None, "rows", "cols"]
    )
    graph = onnx.helper.make_graph(
        nodes, "excitation", [image], [onnx.ValueInfoProto(name=gate.name)], list(weights.values())
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
