"""What is handed out was tried: sizes that a file leaves free, blocks that come out wrong, and what is said of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import onnx
import tiledse.onnx.emit as writer
from onnx import helper
from tests.cli.running import assert_refused, tiledse
from tiledse.errors import TiledSEError, TiledSEWarning
from tiledse.onnx import convert, convert_verified, find, load, verify
from tiledse.onnx.model import from_proto

from .graphs import C, Net, excite, se_net


def strided(*shape, stated=None):
    """A convolution of stride 2 and SE; ``stated`` is what the file says of the size of the map."""
    net = Net()
    x = net("Conv", "x", net.weight(C, 3, 3, 3), net.weight(C), pads=[1, 1, 1, 1], strides=[2, 2])
    z = net("GlobalAveragePool", x, name="pool")
    proto = net.model(net("Mul", x, excite(net, z, x, "conv", "relu", "sigmoid", True, (0, 0))), shape)
    if stated is not None:
        proto.graph.value_info.append(helper.make_tensor_value_info(x, 1, [1, C, *stated]))
    return proto


def two_blocks():
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    for name in ("first", "second"):
        z = net("GlobalAveragePool", x, name=name)
        x = net("Mul", x, excite(net, z, x, "conv", "relu", "sigmoid", True, (10, 9)))
    return from_proto(net.model(x, ("N", 3, 10, 9)))


@pytest.mark.parametrize("tile", ["3xW", "4xW:running", "3x4"])
@pytest.mark.parametrize(
    "proto",
    [
        strided("N", 3, "H", "W", stated=(14, 14)),
        strided(1, 3, "H", "W", stated=(14, 14)),
        strided("N", 3, -1, -1),
        strided(-1, 3, -1, -1, stated=(14, 14)),
    ],
    ids=["stated", "stated, one image", "-1", "all -1, stated"],
)
def test_free_is_free_whatever_the_file_states(proto, tile):
    model = from_proto(proto)
    made = convert_verified(model, find(model, (3, 28, 28)).with_tile(tile))
    assert made.proof.sizes[1][2:] == (60, 60)
    for size in ((28, 28), (40, 17), (56, 30)):
        report = verify(model, made.model, find(model, (3, *size)).with_tile(tile))
        assert report.worst_block < 2e-6, size
        assert report.identity < 2e-6, size


def test_a_block_that_comes_out_wrong_is_refused_and_the_rest_is_converted(monkeypatch):
    model = two_blocks()
    right = writer.running_means
    monkeypatch.setattr(writer, "running_means", lambda tall, height: 1.01 * right(tall, height))
    wanted = find(model).with_tile("4xW", "first").with_tile("4xW:running", "second")
    with pytest.warns(
        TiledSEWarning, match="'second' was left as it was: with tile 4xW:running it is .* off"
    ):
        given = convert(model, wanted)
    assert find(given) == find(model).with_tile("4xW", "first")
    with pytest.raises(TiledSEError, match="no block could be converted: 'second'.*verify=False"):
        convert(model, find(model).with_tile("4xW:running", "second"))
    assert convert(model, wanted, verify=False) is not None


def test_rows_repeated_to_the_wrong_strip_are_seen(monkeypatch):
    plain = writer.Writer.node

    def rounded(self, op, *rest, **attributes):
        if op == "Resize":
            attributes["nearest_mode"] = "ceil"
        return plain(self, op, *rest, **attributes)

    monkeypatch.setattr(writer.Writer, "node", rounded)
    model = two_blocks()
    with pytest.raises(TiledSEError, match="no block could be converted: 'first'.*and 1 more"):
        convert(model, find(model).with_tile("4xW"))


def test_numbers_that_are_not_finite_prove_nothing():
    proto = se_net()
    weight = next(w for w in proto.graph.initializer if w.name == "w2")
    array = onnx.numpy_helper.to_array(weight).copy()
    array.reshape(-1)[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    model = from_proto(proto)
    plan = find(model).with_tile("4xW")
    with pytest.raises(TiledSEError, match="not finite on a random image"):
        convert(model, plan)
    assert find(convert(model, plan, verify=False)) == plan


@pytest.mark.parametrize("tile", ["3xW", "5xW:running", "4x3", "3xW:middle"])
def test_tiles_given_anew_are_tried_against_plain_se(tile):
    model = two_blocks()
    plan = find(model)
    again = convert(convert(model, plan.with_tile("4xW")), plan.with_tile(tile))
    assert verify(model, again, plan.with_tile(tile)).worst_block < 2e-6


def test_the_command_line_says_what_was_tried(tmp_path):
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(strided("N", 3, "H", "W", stated=(14, 14)), path)
    given = ("convert", path, "--input", "3x28x28", "--tile", "3xW", "-o", out, "--force")
    done = tiledse(*given)
    assert "verified in" in done.out
    assert "1x3x28x28 and 2x3x60x60" in done.out
    told = json.loads(tiledse(*given, "--json").out)
    assert told["refused"] == []
    assert told["verify_s"] > 0
    assert told["max_rel_diff_blocks"] < 1e-6
    untried = json.loads(tiledse(*given, "--json", "--no-verify").out)
    assert (untried["verify_s"], untried["max_rel_diff_blocks"]) == (None, None)
    assert "not verified (--no-verify)" in tiledse(*given, "--no-verify").out


def test_a_fixed_batch_leaves_no_size_open(tmp_path):
    path, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    proto = strided("N", 3, "H", "W", stated=(14, 14))
    proto.graph.value_info.append(helper.make_tensor_value_info("v1", 1, ["N", C, 1, 1]))
    onnx.save(proto, path)
    given = ("convert", path, "--input", "3x28x28", "--tile", "3xW", "-o", out, "--force")
    assert tiledse(*given, "--batch", "1", "--ir-version", "8").code == 0
    made = onnx.load(out)
    assert made.ir_version == 8
    values = [*made.graph.input, *made.graph.output, *made.graph.value_info]
    assert not [d for v in values for d in v.type.tensor_type.shape.dim if d.dim_param or d.dim_value < 1]
    assert [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in values[:2]] == [
        [1, 3, 28, 28],
        [1, C, 14, 14],
    ]
    assert "Shape" not in {node.op_type for node in made.graph.node}
    assert len(find(load(out))) == 1
    assert_refused(
        tiledse(*given, "--ir-version", "3"), "IR version 3 does not go with opset 17: expected 8 to"
    )
    onnx.save(strided(2, 3, "H", "W"), path)
    assert_refused(tiledse(*given, "--batch", "1"), "takes a batch of 2, but got 1")
    lcnet = ("convert", "timm:lcnet_050", "--tile", "3xW", "-o", tmp_path / "o.safetensors")
    assert_refused(tiledse(*lcnet, "--batch", "1"), "--batch goes with ONNX")


@pytest.mark.parametrize("tile", ["3xW:running-1", "3xW:upper", "2xW:window-2-2"])
def test_channels_that_are_zero_in_the_rows_seen_refuse_nothing(tile):
    """After a ReLU a channel may be zero in all rows that a gate sees, and not in the rows that it meets."""
    net = Net()
    x = net(
        "Relu", net("Add", "x", net.const(np.linspace(-6, 3, 10).reshape(1, 1, 10, 1).astype(np.float32)))
    )
    wide = net("Relu", net("Conv", x, net.weight(C, 3, 1, 1)))
    z = net("GlobalAveragePool", wide, name="pool")
    y = net("Mul", wide, excite(net, z, wide, "conv", "relu", "sigmoid", True, (10, 9)))
    model = from_proto(net.model(y, ("N", 3, 10, 9)))
    made = convert_verified(model, find(model).with_tile(tile))
    assert made.refused == ()
    assert made.proof.worst_block < 2e-6
