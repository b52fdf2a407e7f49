"""Mutated graphs: converted right, refused with a reason, or failing cleanly; no traceback, no wrong numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest

import onnx
from onnx import helper, numpy_helper
from tiledse.errors import TiledSEError
from tiledse.onnx import convert, find, verify
from tiledse.onnx.model import from_proto

from .graphs import ACTS, GATES, LAYERS, POOLS, nhwc_net, se_net

TILES = (
    "4xW",
    "Hx4",
    "4x3",
    "1x1",
    "4xW:upper",
    "3xW:middle",
    "4xW:running",
    "50xW",
    "1xW:running+2",
    "2xW:window-3+1",
)
OPERATORS = (
    "Relu", "Sigmoid", "Identity", "Mul", "Add", "Sub", "Softmax", "GlobalMaxPool", "GlobalAveragePool", "Transpose",
    "Tanh", "Flatten", "Resize", "MaxPool", "Shape",
)  # fmt: skip


def base(dice: random.Random) -> onnx.ModelProto:
    """A network with a block: plain, or converted before, so that our own operators are mutated too."""
    free = (True, dice.random() < 0.4, dice.random() < 0.4)
    if dice.random() < 0.15:
        proto = nhwc_net(dice.randint(0, 1), free=free[1] or free[2])
    else:
        proto = se_net(
            dice.choice(POOLS[:-2]), dice.choice(LAYERS), dice.choice(ACTS[:4]), dice.choice(GATES),
            opset=dice.choice((11, 13, 17, 18)), free=free, swap=dice.random() < 0.5,
        )  # fmt: skip
    if dice.random() < 0.5:
        model = from_proto(proto)
        proto = convert(model, find(model, (3, 10, 9)).with_tile(dice.choice(TILES))).to_proto()
    return proto


def mutate(proto: onnx.ModelProto, dice: random.Random) -> None:
    """One change somewhere in the graph."""
    graph = proto.graph
    node = dice.choice(list(graph.node))
    kind = dice.randrange(9)
    values = ["x", *(o for n in graph.node for o in n.output), *(w.name for w in graph.initializer)]
    if kind == 0 and node.input:
        node.input[dice.randrange(len(node.input))] = dice.choice(values)
    elif kind == 1:
        node.op_type = dice.choice(OPERATORS)
    elif kind == 2 and node.attribute:
        del node.attribute[dice.randrange(len(node.attribute))]
    elif kind == 3:
        for attribute in node.attribute:
            if attribute.ints:
                attribute.ints[dice.randrange(len(attribute.ints))] += dice.choice((-1, 1))
            elif attribute.type == onnx.AttributeProto.INT:
                attribute.i = 1 - attribute.i
    elif kind == 4 and graph.initializer:
        weight = dice.choice(list(graph.initializer))
        array = numpy_helper.to_array(weight).copy()
        if array.size:
            array.reshape(-1)[dice.randrange(array.size)] += 1
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    elif kind == 5:
        # Somebody else looks at a value within: it becomes an output.
        graph.output.append(helper.make_tensor_value_info(dice.choice(node.output), 1, None))
        graph.output[-1].type.tensor_type.shape.SetInParent()
        graph.output[-1].type.tensor_type.ClearField("shape")
        graph.output[-1].type.tensor_type.shape.dim.extend(
            [onnx.TensorShapeProto.Dimension() for _ in range(4)]
        )
    elif kind == 6 and len(node.output) == 1:
        new = f"{node.output[0]}_again"
        after = helper.make_node(dice.choice(("Identity", "Relu", "Sigmoid", "Neg")), [node.output[0]], [new])
        for other in graph.node:
            other.input[:] = [new if v == node.output[0] else v for v in other.input]
        graph.node.insert(list(graph.node).index(node) + 1, after)
    elif kind == 7 and graph.initializer:
        weight = dice.choice(list(graph.initializer))
        array = numpy_helper.to_array(weight)
        if array.ndim:
            weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[..., ::-1]), weight.name))
    else:
        node.name = dice.choice(["", *(n.name for n in graph.node)])


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 8))])
def test_mutated_graphs(seed):
    outcomes = {"converted": 0, "no block": 0, "refused": 0}
    for i in range(40):
        dice = random.Random(1000 * seed + i)
        proto = base(dice)
        for _ in range(dice.randint(1, 2)):
            mutate(proto, dice)
        try:
            model = from_proto(proto)
            before = model.to_proto().SerializeToString()
            plan = find(model, (3, 10, 9))
        except TiledSEError as error:
            assert "\n" not in str(error)  # noqa: PT017
            outcomes["refused"] += 1
            continue
        if not len(plan):
            assert all(miss.reason for miss in plan.near_misses)
            outcomes["no block"] += 1
            continue
        wanted = plan.with_tile(dice.choice(TILES))
        try:
            converted = convert(model, wanted, divisor_tiles=dice.random() < 0.2)
            given = find(converted, (3, 10, 9))
            report = verify(model, converted, given)
        except TiledSEError as error:
            # A mutant that ONNX Runtime refuses as it is: nothing to convert. A fault of ours would be one of its own.
            assert "please report" not in str(error), (seed, i)  # noqa: PT017
            assert not _runs(model), (seed, i, str(error))  # noqa: PT017
            outcomes["refused"] += 1
            continue
        assert report.identity < 1e-5, (seed, i)
        assert report.worst_block < 1e-5, (seed, i)
        assert model.to_proto().SerializeToString() == before
        outcomes["converted"] += 1
    assert outcomes["converted"] >= 5, outcomes
    assert outcomes["no block"] + outcomes["refused"] >= 4, outcomes


def _runs(model) -> bool:
    from tiledse.onnx.runner import session

    try:
        session(model, optimise=False).run(None, {"x": np.ones((1, 3, 10, 9), np.float32)})
    except Exception:
        return False
    return True
