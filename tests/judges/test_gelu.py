"""Gelu in place of erf, for TensorFlow Lite: the same numbers, and nothing else is touched."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest

import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.judges.gelu import fused


def model(root: float = 2**0.5, half: float = 0.5) -> onnx.ModelProto:
    """Relu(x * (1 + erf(x / root)) * half)."""
    numbers = {"root": root, "one": 1.0, "half": half}
    nodes = [
        helper.make_node("Div", ["x", "root"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Mul", ["x", "c"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["e"]),
        helper.make_node("Relu", ["e"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in "xy"]
    constants = [numpy_helper.from_array(np.array(n, np.float32), name) for name, n in numbers.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def run(graph: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_the_numbers_are_the_same():
    given, x = model(), np.linspace(-4, 4, 64, dtype=np.float32)[None]
    before = run(given, x)
    assert fused(given) == 1
    assert [node.op_type for node in given.graph.node] == ["Gelu", "Relu"]
    onnx.checker.check_model(given)
    np.testing.assert_allclose(run(given, x), before, atol=1e-6)


@pytest.mark.parametrize("other", [{"root": 2.0}, {"half": 1.0}])
def test_other_products_stay(other: dict[str, float]):
    given = model(**other)
    before = given.SerializeToString()
    assert fused(given) == 0
    assert given.SerializeToString() == before
