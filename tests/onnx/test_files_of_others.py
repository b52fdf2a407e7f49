"""Files as others write them: half precision, old opsets, several inputs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import onnx
from onnx import TensorProto, helper
from tests.cli.running import assert_refused, tiledse
from tiledse.onnx import convert, convert_verified, find, load, verify
from tiledse.onnx.model import from_proto
from tiledse.onnx.runner import session

from .graphs import C, Net, R, excite, se_net

TILES = ("4xW", "4xW:running", "3xW:middle", "4x4", "Hx2", "1xW:running+6")


def mean_in_single(pool="mean", layers="conv", free=False):
    """What float16 converters leave with op_block_list=["ReduceMean"]."""
    net = Net(dtype=np.float16)
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 3, 3), net.weight(C), pads=[1, 1, 1, 1]))
    single = net("Cast", x, to=TensorProto.FLOAT)
    z = net("GlobalAveragePool", single, name="pool") if pool == "gap" else net.mean(single, [2, 3], 1)
    z = net("Cast", z, to=TensorProto.FLOAT16)
    gates = excite(net, z, x, layers, "relu", "sigmoid", True, (10, 9))
    return net.model(net("Mul", x, gates), ("N", 3, "H", "W") if free else ("N", 3, 10, 9))


def made_biases(free=False):
    """Biases that are stored in half precision and flat."""
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 3, 3), net.weight(C), pads=[1, 1, 1, 1]))

    def dense(z, i, o):
        stored = net.const(net.random.standard_normal(o).astype(np.float16))
        bias = net("Reshape", net("Cast", stored, to=TensorProto.FLOAT), net.ints(1, -1, 1, 1))
        return net("Add", net("Conv", z, net.weight(o, i, 1, 1)), bias)

    z = net("Relu", dense(net("GlobalAveragePool", x, name="pool"), C, R))
    y = net("Mul", x, net("Sigmoid", dense(z, R, C)))
    return net.model(y, ("N", 3, "H", "W") if free else ("N", 3, 10, 9))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("proto", "allowed"),
    [
        (mean_in_single(), 2e-3),
        (mean_in_single("gap", "gemm"), 2e-3),
        (mean_in_single(free=True), 2e-3),
        (made_biases(), 2e-6),
        (made_biases(True), 2e-6),
    ],
    ids=["half", "half, gemm", "half, free", "biases", "biases, free"],
)
def test_casts_within_a_block(proto, allowed, tile):
    model = from_proto(proto)
    plan = find(model, (3, 10, 9))
    assert len(plan) == 1, plan.near_misses
    converted = convert(model, plan.with_tile(tile))
    assert find(converted, (3, 10, 9)) == plan.with_tile(tile)
    assert verify(model, converted, plan.with_tile(tile)).worst_block < allowed
    assert find(convert(converted, plan), (3, 10, 9)) == plan


def test_a_mean_that_was_taken_in_single_precision_stays_so():
    """A sum over a large map overflows half precision."""
    model = from_proto(mean_in_single())
    converted = convert(model, find(model).with_tile("4xW"))
    infer = onnx.shape_inference.infer_shapes(converted.to_proto())
    types = {v.name: v.type.tensor_type.elem_type for v in infer.graph.value_info}
    means = [n for n in converted.ir.graph if n.op_type in ("ReduceMean", "AveragePool")]
    assert means
    assert {types[n.outputs[0].name] for n in means} == {TensorProto.FLOAT}


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_old_opsets_are_read_and_brought_to_11(opset, tmp_path):
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    proto = se_net("gap", "conv", opset=11)
    proto.opset_import[0].version = opset
    proto.ir_version = 4
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    found = json.loads(tiledse("find", path, "--json").out)
    assert [b["name"] for b in found["blocks"]] == ["pool"]
    assert tiledse("cost", path, "--tile", "4xW").code == 0
    done = tiledse("convert", path, "--tile", "4xW", "-o", out)
    assert f"the file had opset {opset}; onnx's version converter brought it to 11" in done.out
    again = load(out)
    assert again.opset == 11
    assert verify(load(path), again, find(again)).worst_block < 2e-6
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 10, 9)).astype(np.float32)}
    before = session(load(path)).run(None, x)[0]
    back = convert(again, find(again).with_tile("HxW"))
    assert np.abs(session(back).run(None, x)[0] - before).max() < 1e-5


def normalised():
    """Mean and deviation as inputs, as Keras EfficientNetB0 has them after tf2onnx."""
    proto = se_net()
    graph = proto.graph
    for name in ("mean", "deviation"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 1, 1]))
    first = graph.node[0]
    first.input[0] = "normal"
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
    ]
    for at, node in enumerate(nodes):
        graph.node.insert(at, node)
    return proto


def test_the_image_among_several_inputs(tmp_path):
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(normalised(), path)
    assert_refused(tiledse("find", path), "got 3; say which takes the image with --image NAME", "'mean'")
    assert_refused(tiledse("find", path, "--image", "picture"), "has no input 'picture' of 4 axes", "'x'")
    assert_refused(tiledse("find", "timm:lcnet_050", "--image", "x"), "--image goes with FILE.onnx")
    image = ("--image", "x")
    assert len(json.loads(tiledse("find", path, *image, "--json").out)["blocks"]) == 1
    assert tiledse("cost", path, *image, "--tile", "4xW").code == 0
    told = json.loads(tiledse("convert", path, *image, "--tile", "4xW", "-o", out, "--json").out)
    assert told["converted"] == 1
    assert told["max_rel_diff_blocks"] < 1e-6


def with_state():
    net = Net()
    x = net("Add", net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1))), "state")
    z = net("GlobalAveragePool", x, name="pool")
    y = net("Mul", x, excite(net, z, x, "conv", "relu", "sigmoid", True, (10, 9)))
    return replace(from_proto(_with_state(net, y)), image="x")


def _with_state(net, output):
    values = [
        helper.make_tensor_value_info("x", 1, ["N", 3, 10, 9]),
        helper.make_tensor_value_info("state", 1, ["N", C, 10, 9]),
    ]
    outs = [helper.make_tensor_value_info(output, 1, [None] * 4)]
    graph = helper.make_graph(net.nodes, "net", values, outs, net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_state_beside_the_image_is_fed_too():
    model = with_state()
    made = convert_verified(model, find(model).with_tile("3xW"), batch=1)
    assert made.refused == ()
    assert [list(v.shape) for v in made.model.ir.graph.inputs] == [[1, 3, 10, 9], [1, C, 10, 9]]
