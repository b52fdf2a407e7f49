"""Forms by target: each is run and compared with numpy loops, and its graph with what the target takes."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import onnx
from onnx import TensorProto, helper
from tests import reference
from tests.onnx.forms import ends, excitation_of, run
from tests.onnx.graphs import C, nhwc_net, se_net
from tiledse import TiledSEError, targets
from tiledse import onnx as tse_onnx
from tiledse.onnx import converter, fit, shapes
from tiledse.onnx.model import from_proto
from tiledse.targets import Target

NAMES = [name for name in targets.names() if not targets.load(name).plain]
TILES = (
    "7xW", "8xW", "4xW", "3xW", "HxW", "HxW:two-step", "7xW:running", "1xW:running+6", "1xW:window-3+3",
    "2xW:window-2+1", "Hx4", "4x4", "7xW:upper", "7xW:middle", "1xW", "17xW",
)  # fmt: skip
# A prime and an odd height, a width whose factors are within most windows and one whose are not.
SIZES = ((29, 26), (21, 12))


@pytest.mark.parametrize("name", NAMES)
def test_every_form_gives_what_numpy_loops_give_and_its_graph_is_what_the_target_takes(name):
    judge(name, (17, 13), ("7xW", "8xW", "HxW", "HxW:two-step", "1xW:running+6"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_form_of_more_tiles_and_sizes(name, size):
    judge(name, size, TILES)


def judge(name, size, tiles):
    """Convert for a target, run, and compare numbers with numpy loops and the graph with the target's words."""
    target = targets.load(name)
    proto = se_net(size=size)
    model = from_proto(proto)
    excite, (source, product) = excitation_of(proto), ends(model, size)
    found = tse_onnx.find(model, (3, *size))
    x = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
    taken, refusals = [], []
    for tile in tiles:
        try:
            made = tse_onnx.convert_verified(model, found.with_tile(tile), target=target, verify=False)
        except TiledSEError as error:
            refusals.append(str(error))
            continue
        taken.append(tile)
        source_map, got = run(made.model, (source, product), x)
        plain = "HxW" if tile == "HxW:two-step" else tile
        expected = reference.tiled_squeeze_excite(source_map.astype(np.float64), plain, excite)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), tile
        assert_taken(made.model, target, tile)
        again = tse_onnx.find(made.model, (3, *size))
        read = [block.name for block in again.blocks]
        told = [miss.name for miss in again.near_misses if "not read back" in miss.reason]
        assert read + told == ["pool"], tile
        assert not read or again.tiles == made.plan.tiles, tile
    assert all("cannot take tile" in text and "it takes" in text for text in refusals)
    assert {"7xW", "8xW", "HxW", "HxW:two-step", "1xW:running+6"} <= set(taken)


def assert_taken(model, target, tile):
    """Judge a graph by the target's own words, apart from the package's checker."""
    proto = onnx.shape_inference.infer_shapes(model.to_proto(), data_prop=True)
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.value_info}
    ops = [node.op_type for node in proto.graph.node]
    assert not {*ops} & {*target.rejects} - {"Resize"}, (tile, ops)
    assert "Pad" not in ops or "Pad" not in target.rejects
    assert proto.opset_import[0].version <= (target.opset or 99)
    inputs = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert all(inputs[1:])
    assert target.batch in (None, inputs[0])
    for node in proto.graph.node:
        given = {a.name: list(a.ints) for a in node.attribute if a.ints}
        if node.op_type == "AveragePool":
            assert max(given["kernel_shape"]) <= (target.window or 10**9), tile
            assert np.prod(given["kernel_shape"]) <= (target.window_product or 10**9), tile
            assert max(given["strides"]) <= (target.stride or 10**9), tile
            assert not any(given.get("pads", ()))
        if node.op_type == "GlobalAveragePool" and not target.whole:
            assert max(dims[node.input[0]][2:]) <= (target.window or 10**9)
        if node.op_type == "Resize":
            assert "Resize" in target.spread, tile
            (scales,) = [
                onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == node.input[2]
            ]
            assert {*scales.tolist()} - {1} <= {*(target.resize or scales.tolist())}, tile
    assert all(len(d) <= (target.axes or 99) for d in dims.values())


@pytest.mark.parametrize(
    ("size", "tile", "windows"),
    [
        ((28, 112), "14xW", [(7, 1), (2, 1), (1, 8), (1, 7), (1, 2)]),
        ((22, 12), "11xW", [(11, 1), (1, 6), (1, 2)]),  # 11 has no factors, and is within the window
        ((14, 121), "7xW", [(7, 1), (1, 11), (1, 11)]),
    ],
)
def test_sides_in_short_factors_where_a_target_runs_them_best(size, tile, windows):
    proto = se_net(size=size)
    model = from_proto(proto)
    target = Target("npu", window=15, factor=8, sides="rows", mean="AveragePool", static=True, batch=1)
    found = tse_onnx.find(model, (3, *size))
    made = tse_onnx.convert_verified(model, found.with_tile(tile), target=target, verify=False)
    assert made.fit.blocks[0].windows == tuple(windows)
    source, product = ends(model, size)
    x = np.random.default_rng(3).standard_normal((1, 3, *size)).astype(np.float32)
    source_map, got = run(made.model, (source, product), x)
    expected = reference.tiled_squeeze_excite(source_map.astype(np.float64), tile, excitation_of(proto))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_batch_that_a_target_does_not_take():
    model = from_proto(se_net(size=(8, 8), free=(False, False, False)))  # a batch of 2
    plan = tse_onnx.find(model, (3, 8, 8)).with_tile("4xW")
    with pytest.raises(
        TiledSEError, match="target sophgo takes a batch of 1, and net has 2; export it with a batch"
    ):
        tse_onnx.convert(model, plan, target="sophgo")
    with pytest.raises(TiledSEError, match="takes a batch of 2, but got 1; leave --batch out"):
        tse_onnx.convert(model, plan, target="sophgo", batch=1)


@pytest.mark.parametrize(
    ("tile", "operator"), [("8xW", "ConvTranspose"), ("9xW", "Concat"), ("14xW", "Concat")]
)
def test_sophgo_repeats_by_eight_at_the_most(tile, operator):
    # tpu-mlir 1.30.2 fails in its code generator at ConvTranspose by 9 and more.
    model = from_proto(se_net(size=(28, 12)))
    plan = tse_onnx.find(model, (3, 28, 12)).with_tile(tile)
    made = tse_onnx.convert(model, plan, target="sophgo")
    ops = {node.op_type for node in made.ir.graph}
    assert operator in ops
    assert ("ConvTranspose" in ops) == (operator == "ConvTranspose")


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_networks(name):
    size = (16, 9)
    model = from_proto(nhwc_net(size=size))
    found = tse_onnx.find(model, (3, *size))
    for tile in ("7xW", "HxW:two-step"):
        made = tse_onnx.convert_verified(model, found.with_tile(tile), target=targets.load(name))
        assert not made.refused
        assert made.proof is not None
        assert made.proof.worst_block < 1e-5
        assert made.fit is not None
        assert made.fit.difference is not None
        assert made.fit.difference < 1e-5


@pytest.mark.parametrize("layers", ["gemm", "matmul", "flatten"])
def test_excitations_of_dense_layers_take_two_steps_too(layers):
    model = from_proto(se_net(pool="mean_flat" if layers == "gemm" else "gap", layers=layers, opset=18))
    made = tse_onnx.convert_verified(model, tse_onnx.find(model), target=targets.load("generic"))
    assert made.model.opset == 17
    assert made.fit is not None
    assert made.fit.blocks[0].windows
    assert max(max(w) for w in made.fit.blocks[0].windows) <= 8


def test_the_product_may_be_an_output_of_the_network():
    proto = se_net(size=(14, 9))
    product = next(node.output[0] for node in proto.graph.node if node.op_type == "Mul")
    proto.graph.output.append(helper.make_tensor_value_info(product, TensorProto.FLOAT, [None] * 4))
    model = from_proto(proto)
    made = tse_onnx.convert(model, tse_onnx.find(model, (3, 14, 9)).with_tile("7xW"), target="generic")
    assert [v.name for v in made.ir.graph.outputs] == [v.name for v in model.ir.graph.outputs]


def graph(nodes, shape, weights=()):
    out = helper.make_tensor_value_info(
        "y", TensorProto.FLOAT, [None] * (5 if nodes[0].op_type == "Reshape" else 4)
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_graph(nodes, "net", [value], [out], list(weights))
    return from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def pool(kernel, strides):
    return helper.make_node("AveragePool", ["x"], ["y"], name="p", kernel_shape=kernel, strides=strides)


def resized(*scales):
    weight = onnx.numpy_helper.from_array(np.array([1, 1, *scales], np.float32), "s")
    return (
        [helper.make_node("Resize", ["x", "", "s"], ["y"], name="r", mode="nearest")],
        (1, 3, 8, 8),
        [weight],
    )


FIVE = onnx.numpy_helper.from_array(np.array([1, 3, 2, 4, 8]), "s")
VIEW = helper.make_node("Reshape", ["x", "s"], ["y"], name="v")
NPU = Target(
    "npu", window=4, window_product=12, stride=3, resize=(2, 4), axes=4, static=True, batch=1,
    rejects={"Relu": "it has none"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (([pool([5, 1], [1, 1])], (1, 3, 8, 8)), "a window of 5x1; it takes sides up to 4"),
        (([pool([4, 4], [1, 1])], (1, 3, 8, 8)), "a window of 16 elements; it takes up to 12"),
        (([pool([2, 2], [4, 4])], (1, 3, 8, 8)), "strides of 4x4; it takes up to 3"),
        (([helper.make_node("GlobalAveragePool", ["x"], ["y"], name="p")], (1, 3, 8, 2)), "a window of 8x2; it takes"),
        (resized(3, 1), "it repeats by 3; npu takes 2, 4"),
        (resized(2.5, 1), "it repeats by 2.5; npu takes 2, 4"),
        (([helper.make_node("Relu", ["x"], ["y"], name="r")], (1, 3, 8, 8)), "it has none"),
        (([VIEW], (1, 3, 8, 8), [FIVE]), "'y' has 5 axes; it takes 4"),
        (([pool([2, 2], [2, 2])], (2, 3, 8, 8)), "its batch is 2; npu takes 1"),
        (([pool([2, 2], [2, 2])], (1, 3, "H", 8)), "its size is free; npu takes fixed sizes"),
    ],
)  # fmt: skip
def test_the_checker_names_what_a_target_does_not_take(given, reason):
    model = graph(*given)
    found = fit.unfit(model, NPU, shapes.shapes_of(model, (3, 8, given[1][3])), [])
    assert reason in [f.reason for f in found] or any(f.reason.startswith(reason) for f in found)


def test_the_checker_lets_pass_what_a_target_takes():
    for given in (([pool([4, 3], [3, 3])], (1, 3, 8, 8)), resized(2, 4)):
        model = graph(*given)
        assert not fit.unfit(model, NPU, shapes.shapes_of(model, None), [])


def test_a_form_that_its_own_target_rejects_is_refused():
    model = from_proto(se_net(size=(14, 9)))
    target = replace(targets.load("generic"), rejects={"Split": "it has no Split"})
    with pytest.raises(TiledSEError, match=re.escape("target generic does not take block 'pool': Split")):
        tse_onnx.convert(model, tse_onnx.find(model, (3, 14, 9)).with_tile("7xW"), target=target)


def test_what_falls_to_the_cpu_elsewhere_in_the_network_is_told_and_not_refused():
    model = from_proto(se_net(size=(14, 9)))
    target = replace(targets.load("ethos-u"), rejects={"Relu": "it has none"})
    made = tse_onnx.convert_verified(model, tse_onnx.find(model, (3, 14, 9)).with_tile("7xW"), target=target)
    assert made.fit is not None
    assert {f.operator for f in made.fit.fallbacks} == {"Relu"}
    text = "\n".join(made.fit.lines())
    assert "falls to the CPU on ethos-u, is not taken, or runs less well there" in text
    assert "it has none" in text


def test_tiles_that_a_target_cannot_take_say_which_it_can():
    model = from_proto(se_net(size=(14, 9)))
    found = tse_onnx.find(model, (3, 14, 9))
    with pytest.raises(TiledSEError, match=r"ethos-u cannot take tile 7x3 of 'pool': .* it takes strips"):
        tse_onnx.convert(model, found.with_tile("7x3"), target="ethos-u")


def test_newer_attributes_that_say_nothing_are_dropped_for_an_older_opset():
    proto = se_net(pool="mean", opset=18, size=(14, 9))
    for node in proto.graph.node:
        if node.op_type == "ReduceMean":
            node.attribute.append(helper.make_attribute("noop_with_empty_axes", 0))
    model = from_proto(proto)
    made = tse_onnx.convert(model, tse_onnx.find(model).with_tile("1xW"), target="sophgo")
    assert made.opset == 17
    proto.graph.node.append(helper.make_node("ReduceMean", ["x"], ["z"], noop_with_empty_axes=1))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    other = from_proto(proto)
    with pytest.raises(TiledSEError, match="takes opset 17 and older, .* export it with opset 17"):
        tse_onnx.convert(other, tse_onnx.find(other).with_tile("1xW"), target="sophgo")


def test_without_a_target_nothing_changes():
    model = from_proto(se_net(size=(14, 9)))
    plan = tse_onnx.find(model, (3, 14, 9)).with_tile("7xW")
    plain = tse_onnx.convert(model, plan)
    named = converter.convert_verified(model, plan, target=targets.load("onnxruntime"))
    assert plain.to_proto().SerializeToString() == named.model.to_proto().SerializeToString()
    assert named.fit is not None
    assert not named.fit.fallbacks


def test_two_step_is_read_back_without_a_target():
    model = from_proto(se_net(size=(13, 9), free=(True, True, True)))
    plan = tse_onnx.find(model, (3, 13, 9)).with_tile("HxW:two-step")
    made = tse_onnx.convert(model, plan)
    assert tse_onnx.find(made, (3, 13, 9)) == plan
    assert tse_onnx.operators(made)["ReduceMean"] == 2
    back = tse_onnx.convert(made, plan.with_tile("HxW"))
    assert tse_onnx.find(back, (3, 13, 9)) == plan.with_tile("HxW")
    assert not [n for n in back.ir.graph if n.op_type == "AveragePool"]
    assert isinstance(back.ir, ir.Model)
    assert C == 6


def test_the_verb_prints_the_form_of_each_block_and_what_falls(tmp_path):
    from tests.cli.running import tiledse as run_verb

    onnx.save(se_net(size=(14, 9)), tmp_path / "se.onnx")
    out = str(tmp_path / "t.onnx")
    done = run_verb("convert", str(tmp_path / "se.onnx"), "--tile", "7xW", "--target", "ethos-u", "-o", out)
    assert done.code == 0
    assert "written for target ethos-u: Arm Ethos-U55" in done.out
    assert re.search(r"pool +7xW +ReduceMean, AveragePool, 2 Split, 2 Mul, Concat +7x1", done.out)
    assert "nothing in the file is known to fall to the CPU on ethos-u" in done.out
    assert "exact SE in two steps (--tile HxW) gained as much on ethos-u" in done.out


@pytest.mark.parametrize(
    ("target", "tile", "said"),
    [
        (
            "ethos-u",
            "1xW:running+6",
            "1xW:running+6, .tflite took 3 % more than SE in MobileNetV3-Small uint8 of others, U85-256",
        ),
        (
            "sophgo",
            "1xW:running+6",
            "1xW:running+6 took 7 % more than SE in EfficientNet-B0 (tpu-mlir 1.30.2, BM1684X F16)",
        ),
    ],
)
def test_the_verb_says_where_a_form_was_slower(target, tile, said, tmp_path):
    from tests.cli.running import tiledse as run_verb

    onnx.save(se_net(size=(14, 9)), tmp_path / "se.onnx")
    out = str(tmp_path / "t.onnx")
    done = run_verb("convert", str(tmp_path / "se.onnx"), "--tile", tile, "--target", target, "-o", out)
    assert done.code == 0
    assert said in done.out
