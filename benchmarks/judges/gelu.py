"""Write x * (1 + erf(x / sqrt(2))) / 2 as one Gelu: TensorFlow Lite has a Gelu and no Erf."""

from __future__ import annotations

import math

import numpy as np

import onnx
from onnx import helper, numpy_helper

_OPSET = 20  # the first that has Gelu


def fused(model: onnx.ModelProto) -> int:
    """Replace each such product by a Gelu, in place; how many there were. The opset is raised where there are any."""
    graph = model.graph
    numbers = {i.name: numpy_helper.to_array(i) for i in graph.initializer if math.prod(i.dims) == 1}
    made = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}

    def next_of(node: onnx.NodeProto, kind: str, *other: float) -> onnx.NodeProto | None:
        """The only user of a node, if it is of a kind and its other operand is that number."""
        follow = users.get(node.output[0], [])
        if len(follow) != 1 or follow[0].op_type != kind or node.output[0] in outputs:
            return None
        beside = [numbers.get(name) for name in follow[0].input if name != node.output[0]]
        right = not other or (len(beside) == 1 and beside[0] is not None and np.allclose(beside[0], other[0]))
        return follow[0] if right else None

    count = 0
    for erf in [node for node in graph.node if node.op_type == "Erf"]:
        scaled = made.get(erf.input[0])
        if scaled is None or scaled.op_type != "Div" or len(users[scaled.output[0]]) != 1:
            continue
        if scaled.output[0] in outputs:
            continue
        by = numbers.get(scaled.input[1])
        plus = next_of(erf, "Add", 1.0)
        times = plus and next_of(plus, "Mul")
        half = times and next_of(times, "Mul", 0.5)
        x = scaled.input[0]
        if by is None or not np.allclose(by, math.sqrt(2)) or not half or x not in times.input:
            continue
        at = list(graph.node).index(half)
        graph.node.insert(at, helper.make_node("Gelu", [x], list(half.output), name=f"gelu_{count}"))
        for node in (scaled, erf, plus, times, half):
            graph.node.remove(node)
        count += 1
    if count:
        for opset in model.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(opset.version, _OPSET)
    return count
