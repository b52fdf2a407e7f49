"""ONNX files in rows: operators of ONNX against ONNX Runtime, and real detectors in steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils._pytree import tree_flatten

import onnx
import tiledse as ts
from onnx import TensorProto, helper
from tiledse.onnx import OnnxModel
from tiledse.onnx.model import from_proto
from tiledse.onnx.runner import run as run_onnx
from tiledse.stream.reading.module import OnnxNet
from tiledse.stream.step.making import make_step
from tiledse.stream.step.run import StepRun
from tiledse.stream.step.sessions import TorchSession

F = TensorProto.FLOAT
RNG = np.random.default_rng(0)


def graph(nodes, constants=None, rank=4) -> OnnxModel:
    """A graph from x (1, 4, 9, 6) to y."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, (1, 4, 9, 6))],
        [helper.make_tensor_value_info("y", F, [None] * rank)],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in (constants or {}).items()],
    )
    return from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def node(kind, *inputs, output="y", **attributes):
    return helper.make_node(kind, list(inputs), [output], **attributes)


def weights(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


INTS = np.int64
CASES = {
    "conv": (
        [node("Conv", "x", "w", "b", pads=[1, 1, 1, 1], strides=[2, 2])],
        {"w": weights(5, 4, 3, 3), "b": weights(5)},
    ),
    "conv same": ([node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2])], {"w": weights(5, 4, 3, 3)}),
    "conv same lower": ([node("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[2, 1])], {"w": weights(5, 4, 2, 3)}),
    "conv groups": ([node("Conv", "x", "w", group=4, dilations=[2, 2], pads=[2, 2, 2, 2])], {"w": weights(4, 1, 3, 3)}),
    "transposed": ([node("ConvTranspose", "x", "w", strides=[2, 2])], {"w": weights(4, 3, 2, 2)}),
    "transposed more": (
        [node("ConvTranspose", "x", "w", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": weights(4, 3, 3, 3)},
    ),
    "norm": (
        [node("BatchNormalization", "x", "s", "b", "m", "v", epsilon=1e-3)],
        {"s": weights(4), "b": weights(4), "m": weights(4), "v": np.abs(weights(4))},
    ),
    "max": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])], {}),
    "max ceil": ([node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}),
    "mean": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "mean counted": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], {}),
    "nearest": (
        [node("Resize", "x", "", "s", nearest_mode="floor", coordinate_transformation_mode="asymmetric")],
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "nearest half": ([node("Resize", "x", "", "s", mode="nearest")], {"s": np.array([1, 1, 3, 2], np.float32)}),
    "linear": ([node("Resize", "x", "", "s", mode="linear")], {"s": np.array([1, 1, 2, 4], np.float32)}),
    "linear corner": (
        [node("Resize", "x", "", "s", mode="linear", coordinate_transformation_mode="asymmetric")],
        {"s": np.array([1, 1, 2, 3], np.float32)},
    ),
    "linear size": ([node("Resize", "x", "", "", "s", mode="linear")], {"s": np.array([1, 4, 13, 7], INTS)}),
    "clip": ([node("Clip", "x", "a", "b")], {"a": np.float32(-0.2), "b": np.float32(0.3)}),
    "clip above": ([node("Clip", "x", "", "b")], {"b": np.float32(0.3)}),
    "hard": ([node("HardSigmoid", "x", alpha=0.3, beta=0.4)], {}),
    "swish": ([node("HardSwish", "x")], {}),
    "erf": ([node("Erf", "x")], {}),
    "softplus": ([node("Softplus", "x")], {}),
    "prelu": ([node("PRelu", "x", "s")], {"s": weights(4, 1, 1)}),
    "leaky": ([node("LeakyRelu", "x", alpha=0.2)], {}),
    "elu": ([node("Elu", "x", alpha=0.7)], {}),
    "softmax": ([node("Softmax", "x", axis=-1)], {}),
    "sum": ([node("Add", "x", "c")], {"c": weights(4, 1, 1)}),
    "power": ([node("Abs", "x", output="a"), node("Pow", "a", "c")], {"c": np.float32(1.5)}),
    "pad": ([node("Pad", "x", "p", "v")], {"p": np.array([0, 0, 1, 0, 0, 0, 2, 3], INTS), "v": np.float32(2)}),
    "slice": (
        [node("Slice", "x", "s", "e", "a", "t")],
        {
            "s": np.array([1, 0], INTS),
            "e": np.array([-1, 99], INTS),
            "a": np.array([2, 3], INTS),
            "t": np.array([2, 1], INTS),
        },
    ),
    "concat": ([node("Relu", "x", output="a"), node("Concat", "x", "a", axis=1)], {}),
    "split": (
        [helper.make_node("Split", ["x", "n"], ["a", "b"], axis=1), node("Concat", "b", "a", axis=1)],
        {"n": np.array([1, 3], INTS)},
    ),
    "head": (
        [
            node("GlobalAveragePool", "x", output="a"),
            node("Flatten", "a", output="b"),
            node("Gemm", "b", "w", "c", transB=1),
        ],
        {"w": weights(3, 4), "c": weights(3)},
    ),
    "head by matmul": (
        [
            node("ReduceMean", "x", axes=[2, 3], keepdims=0, output="a"),
            node("Unsqueeze", "a", "d", output="b"),
            node("Squeeze", "b", "d", output="c"),
            node("MatMul", "c", "w"),
        ],
        {"w": weights(4, 3), "d": np.array([1], INTS)},
    ),
    "views": (
        [
            node("Reshape", "x", "s", output="a"),
            node("Transpose", "a", perm=[0, 2, 1, 3, 4], output="b"),
            node("Reshape", "b", "t"),
        ],
        {"s": np.array([0, 2, 2, -1, 6], INTS), "t": np.array([0, 4, -1, 6], INTS)},
    ),
    "size of the image": (
        [
            node("Shape", "x", output="n"),
            node("Gather", "n", "i", output="h"),
            node("Cast", "h", to=F, output="f"),
            node("Mul", "x", "f"),
        ],
        {"i": np.array(2, INTS)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_are_those_of_onnx_runtime(name):
    nodes, constants = CASES[name]
    model = graph(nodes, constants, 2 if "head" in name else 4)
    x = weights(1, 4, 9, 6)
    (expected,) = run_onnx(model, {"x": x}, ["y"]).values()
    got = OnnxNet(model)(torch.from_numpy(x))
    torch.testing.assert_close(got, torch.from_numpy(np.array(expected)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Resize", "x", "", "s", mode="cubic")], "cubic interpolation by half_pixel is not torch's"),
        ([node("Pad", "x", "p", mode="reflect")], "Pad .* is not read: it repeats or mirrors the edge"),
        ([node("LRN", "x", size=3)], r"operator LRN .* is not read for streaming"),
        ([node("Cast", "x", to=TensorProto.INT64)], "whole numbers of a map"),
    ],
)
def test_what_is_not_read_is_named(nodes, message):
    model = graph(nodes, {"s": np.array([1, 1, 2, 2], np.float32), "p": np.array([0, 0, 1, 1] * 2, INTS)})
    with pytest.raises(ts.TiledSEError, match=message):
        OnnxNet(model)(torch.zeros(1, 4, 9, 6))


def compare(network, tile, height, known, tolerance):
    """In steps against ONNX Runtime on the whole image."""
    plan = network.plan.with_tile(tile)
    made = make_step(network, plan, height=height if known else None)
    x = torch.from_numpy(np.random.default_rng(1).random((1, 3, height, 64), np.float32)) * 2 - 1
    with torch.no_grad():
        expected, moved = (tree_flatten(network.tiled(plan)(image))[0] for image in (x, x * (1 + 2**-22)))
    got = StepRun(TorchSession(made.step, made.middle), made.header, height if known else None)(x.numpy())
    for mine, theirs, other in zip(got.values(), expected, moved, strict=True):
        assert mine.shape == tuple(theirs.shape)
        scale = theirs.abs().max()
        limit = max(tolerance, 10 * float((other - theirs).abs().max() / scale))
        assert float(np.abs(mine - theirs.numpy()).max() / scale) < limit
    return made.header


def test_a_real_classifier(shared):
    network = ts.open(shared / "models" / "tf_mobilenetv3_small_100_dynamo.onnx", (3, 224, 224))
    plan = network.plan.with_tile("1xW:running")
    made = make_step(network, plan, height=224)
    x = torch.from_numpy(np.random.default_rng(1).random((1, 3, 224, 224), np.float32)) * 2 - 1
    with torch.no_grad():
        expected = network.tiled(plan)(x).numpy()
    (got,) = StepRun(TorchSession(made.step, made.middle), made.header, 224)(x.numpy()).values()
    assert np.abs(got - expected).max() / np.abs(expected).max() < 2e-5
    assert (
        made.header.identity != make_step(network, network.plan.with_tile("1xW"), height=224).header.identity
    )


@pytest.mark.slow
@pytest.mark.parametrize("tile", ["7xW", "1xW:running"])
def test_a_detector_with_interpolation_from_corners(shared, tile):
    network = ts.open(shared / "models" / "centernet_mobilenetv3_075.onnx", (3, 320, 64))
    assert compare(network, tile, 320, False, 1e-4).multiple in (1, 32)


@pytest.mark.slow
def test_a_network_that_pads_by_its_size(shared):
    network = ts.open(shared / "models" / "tf_mobilenetv3_small_100_ts.onnx", (3, 201, 64))
    compare(network, "1xW:running", 201, True, 2e-5)
    assert compare(network, "1xW:running", 224, False, 2e-5).multiple == 32


@pytest.mark.slow
def test_a_text_detector_of_any_height():
    rapidocr = pytest.importorskip("rapidocr")
    path = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_det_small.onnx"
    network = ts.open(path, (3, 352, 64))
    header = compare(network, "1xW:running", 352, False, 1e-4)
    assert (header.multiple, header.unit) == (32, 32)


def test_a_head_that_joins_the_mean_of_a_map_is_named(shared):
    network = ts.open(shared / "models" / "selfie_segmentation.onnx", (3, 256, 256))
    with pytest.raises(
        ts.TiledSEError, match=r"joins a map with a mean of the whole .* it would hold [\d,]+ el"
    ):
        make_step(network, network.plan.with_tile("7xW"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "size", "heights"),
    [
        ("PP-OCRv6_det_small.onnx", (3, 352, 64), (352, 416)),
        ("centernet_mobilenetv3_075.onnx", (3, 320, 64), (320, 416)),
        ("tf_mobilenetv3_small_100_dynamo.onnx", (3, 224, 224), (224,)),
    ],
)
def test_files_of_real_networks_are_onnx_runtime_on_the_whole_image(shared, tmp_path, file, size, heights):
    """The exported file by itself, against ONNX Runtime on the converted file: neither of them in torch."""
    if file.startswith("PP"):
        path = Path(pytest.importorskip("rapidocr").__file__).parent / "models" / file
    else:
        path = shared / "models" / file
    network = ts.open(path, size)
    plan = network.plan.with_tile("1xW:running")
    known = heights[0] if len(heights) == 1 else None
    made = ts.export_step(network, plan, tmp_path / "step.onnx", height=known)
    assert made.max_rel_error_file < 1e-3  # of outputs of 1e-6, by a sigmoid that is right to 2e-7
    ts.write(network, plan, tmp_path / "whole.onnx")
    for height in heights:
        # Pictures are smooth; of noise a detector says nothing, and nothing is what it would be compared by.
        x = np.random.default_rng(height).random((1, 3, height // 8, size[2] // 8), np.float32)
        x = x.repeat(8, 2).repeat(8, 3) * 2 - 1
        whole = onnxruntime.InferenceSession(tmp_path / "whole.onnx")
        expected = whole.run(None, {whole.get_inputs()[0].name: x})
        got = ts.StepRunner(tmp_path / "step.onnx")(x)
        for mine, theirs in zip(got.values(), expected, strict=True):
            assert mine.shape == theirs.shape
            assert np.abs(mine - theirs).max() < 1e-4 * max(1.0, np.abs(theirs).max())
