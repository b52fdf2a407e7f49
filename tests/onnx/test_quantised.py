"""Statically quantised files: tiles without calibration data, by numpy that counts in the same integers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

import onnx
import tiledse as ts
from tests.onnx.graphs import Net, se_net
from tiledse import onnx as tse_onnx
from tiledse.onnx import finder
from tiledse.onnx.model import from_proto

quantization = pytest.importorskip("onnxruntime.quantization")
SIZE = (14, 9)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The float network, and what ONNX Runtime's own quantiser makes of it, by its settings."""
    folder = tmp_path_factory.mktemp("quantised")
    proto = se_net(size=SIZE)
    onnx.save(proto, folder / "float.onnx")
    made = {}
    for name, per_channel, kind in (("int8", True, "QInt8"), ("uint8", False, "QUInt8")):

        class Images(quantization.CalibrationDataReader):
            def __init__(self):
                random = np.random.default_rng(0)
                self.images = iter(
                    [{"x": random.standard_normal((1, 3, *SIZE)).astype(np.float32)} for _ in range(8)]
                )

            def get_next(self):
                return next(self.images, None)

        path = folder / f"{name}.onnx"
        quantization.quantize_static(
            str(folder / "float.onnx"), str(path), Images(), quant_format=quantization.QuantFormat.QDQ,
            per_channel=per_channel, activation_type=quantization.QuantType[kind],
            weight_type=quantization.QuantType.QInt8,
        )  # fmt: skip
        made[name] = tse_onnx.load(path)
    return proto, made


def linear(model, place):
    """Scales of the two layers, the map and the gates, and the integers of both layers, out of the file."""
    arrays = {k: v.const_value.numpy() for k, v in model.ir.graph.initializers.items()}
    layers = []
    for node in place.excitation.nodes:
        if node.op_type != "Conv":
            continue
        w, b = (node.inputs[i].producer() for i in (1, 2))
        weights = arrays[w.inputs[0].name].astype(np.int64)[:, :, 0, 0]
        x = node.inputs[0].producer()
        layers.append((
            weights, arrays[w.inputs[1].name].reshape(-1).astype(np.float64), arrays[b.inputs[0].name].astype(np.int64),
            arrays[b.inputs[1].name].reshape(-1).astype(np.float64), *step(arrays, x),
        ))  # fmt: skip
    return layers


def step(arrays, node):
    zero = arrays[node.inputs[2].name]
    return float(arrays[node.inputs[1].name]), int(zero), np.iinfo(zero.dtype)


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_biases_are_counted_in_the_steps_that_integer_kernels_take(networks, name):
    model = networks[1][name]
    plan = tse_onnx.find(model, (3, *SIZE))
    made = tse_onnx.convert(model, plan.with_tile("7xW"))
    (old,), (new,) = (finder.locate(m, (3, *SIZE)).places for m in (model, made))
    before, after = linear(model, old)[0], linear(made, new)[0]
    maker = new.squeeze.source.producer()
    arrays = {k: v.const_value.numpy() for k, v in made.ir.graph.initializers.items()}
    assert after[4] == float(arrays[maker.inputs[1].name])  # the descriptors' scale is the map's
    assert before[4] != after[4]
    np.testing.assert_allclose(after[3], after[4] * after[1], rtol=1e-6)  # what kernels assume of a bias
    np.testing.assert_allclose(after[2] * after[3], before[2] * before[3], atol=after[3].max())
    np.testing.assert_array_equal(after[0], before[0])


@pytest.mark.parametrize("name", ["int8", "uint8"])
@pytest.mark.parametrize("tile", ["7xW", "4xW", "1xW:running+3"])
def test_quantised_tiles_are_near_those_of_the_float_network(networks, name, tile):
    proto, made = networks
    model = made[name]
    plain = from_proto(proto)
    x = np.random.default_rng(5).standard_normal((1, 3, *SIZE)).astype(np.float32)
    ours = tse_onnx.convert_verified(model, tse_onnx.find(model, (3, *SIZE)).with_tile(tile))
    assert not ours.refused
    assert [str(t) for t in tse_onnx.find(ours.model, (3, *SIZE)).tiles] == [tile]
    expected, got, se = (
        tse_onnx.session(m).run(None, {"x": x})[0]
        for m in (tse_onnx.convert(plain, tse_onnx.find(plain).with_tile(tile)), ours.model, plain)
    )
    (quantised,) = tse_onnx.session(model).run(None, {"x": x})
    noise = np.abs(quantised - se).max()  # what quantising does to plain SE
    assert np.abs(got - expected).max() < 2 * noise
    assert np.abs(expected - se).max() > 0


def test_gates_are_integers_again_before_the_product(networks):
    model = networks[1]["int8"]
    made = tse_onnx.convert(model, tse_onnx.find(model, (3, *SIZE)).with_tile("7xW"))
    product = next(n for n in made.ir.graph if n.op_type == "Mul")
    assert {v.producer().op_type for v in product.inputs} == {"DequantizeLinear"}


def test_plain_se_keeps_its_own_scale(networks):
    model = networks[1]["int8"]
    plan = tse_onnx.find(model, (3, *SIZE))
    made = tse_onnx.convert(model, plan)
    assert made.to_proto().graph.node == model.to_proto().graph.node


def test_eval_runs_what_convert_writes(networks):
    import torch

    model = networks[1]["int8"]
    network = ts.open(model, (3, *SIZE))
    plan = network.plan.with_tile("4xW")
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    se, tse = network.branches([plan])(x)
    torch.testing.assert_close(tse, network.tiled(plan)(x))
    torch.testing.assert_close(se, network.tiled(network.se)(x))
    assert network.refuses(0) is not None


def scaled_by_the_image(model):
    """The map's scale computed from the image."""
    (place,) = finder.locate(model, (3, *SIZE)).places
    maker = place.squeeze.source.producer()
    doubled = ir.Value(name="doubled", shape=ir.Shape([]))
    doubled.dtype = ir.DataType.FLOAT
    mean = ir.node("ReduceMax", [model.ir.graph.inputs[0]], {"keepdims": 0}, outputs=[doubled])
    model.ir.graph.insert_before(next(iter(model.ir.graph)), mean)
    maker.replace_input_with(1, doubled)


def bare(model):
    """The map without its pair of QuantizeLinear and DequantizeLinear."""
    (place,) = finder.locate(model, (3, *SIZE)).places
    back = place.squeeze.source.producer()
    back.outputs[0].replace_all_uses_with(back.inputs[0].producer().inputs[0])


def a_scale_a_channel(model):
    (place,) = finder.locate(model, (3, *SIZE)).places
    maker = place.squeeze.source.producer()
    scale = maker.inputs[1].const_value.numpy()
    many = ir.Value(name="many", const_value=ir.tensor(np.full(6, scale, np.float32), name="many"))
    model.ir.graph.register_initializer(many)
    maker.replace_input_with(1, many)


WITHOUT_SCALE = [
    (bare, "and its map is not, so its own range is not known"),
    (scaled_by_the_image, "the scale or zero point of its quantised map is computed, not constant"),
    (a_scale_a_channel, "its quantised map has a scale for each channel; expected one for all"),
]


@pytest.mark.parametrize(("change", "reason"), WITHOUT_SCALE)
def test_without_a_scale_no_block_is_converted_and_the_line_says_why(networks, change, reason, tmp_path):
    model = networks[1]["int8"].clone()
    change(model)
    plan = tse_onnx.find(model, (3, *SIZE))
    (miss,) = plan.near_misses
    assert reason in miss.reason
    assert miss.gates
    assert ts.Plan.from_dict(plan.to_dict()).near_misses == (miss,)
    onnx.save(model.to_proto(), tmp_path / "net.onnx")
    given = ["convert", "net.onnx", "--input", "3x14x9", "--tile", "7xW", "-o", "tse.onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "tiledse", *given], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no squeeze-and-excite block that takes tiles: 'pool': " in done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_where_some_blocks_stay_se_the_output_says_which_and_why(networks, tmp_path):
    """Two networks side by side in one file, one of them without a scale."""
    good, bad = networks[1]["int8"].to_proto(), networks[1]["int8"].clone()
    bare(bad)
    bad = onnx.compose.add_prefix(bad.to_proto(), "bare/", rename_inputs=False)
    both = onnx.ModelProto()
    both.CopyFrom(good)
    for name in ("node", "initializer", "output"):
        getattr(both.graph, name).extend(getattr(bad.graph, name))
    onnx.checker.check_model(both)
    network = ts.open(from_proto(both), (3, *SIZE))
    assert [block.name for block in network.plan.blocks] == ["pool"]
    written = ts.write(network, network.plan.with_tile("7xW"), tmp_path / "tse.onnx")
    said = written.to_dict()
    assert (said["converted"], said["total"]) == (1, 1)
    (stays,) = [miss for miss in said["near_misses"] if miss.get("gates")]
    assert stays["name"] == "bare/pool"
    assert f"'bare/pool' takes no tiles and stays as it was: {stays['reason']}" in written.lines()
    # A pool that gates nothing, such as that of a classifier, is no such place.
    net = Net()
    plain = net.model(net("GlobalAveragePool", "x", name="head"), (1, 3, *SIZE))
    (head,) = tse_onnx.find(from_proto(plain)).near_misses
    assert not head.gates


def test_the_operators_of_onnx_runtime_itself_are_a_near_miss_with_the_reason(tmp_path, networks):
    proto, _ = networks
    onnx.save(proto, tmp_path / "float.onnx")

    class One(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = [{"x": np.ones((1, 3, *SIZE), np.float32)}]

        def get_next(self):
            return self.left.pop() if self.left else None

    quantization.quantize_static(
        str(tmp_path / "float.onnx"),
        str(tmp_path / "q.onnx"),
        One(),
        quant_format=quantization.QuantFormat.QOperator,
    )
    plan = tse_onnx.find(tse_onnx.load(tmp_path / "q.onnx"), (3, *SIZE))
    assert not len(plan)
    assert (
        "QLinearGlobalAveragePool of com.microsoft, which is no operator of ONNX"
        in plan.near_misses[0].reason
    )
