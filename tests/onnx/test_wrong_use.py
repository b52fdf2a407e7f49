"""Files that are none, networks that cannot be converted, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

import onnx
import tiledse.onnx.model as model_file
from onnx import TensorProto, helper
from tests.cli.running import assert_refused, tiledse
from tiledse.errors import TiledSEError
from tiledse.onnx import alls, convert, find, load, save, verify
from tiledse.onnx.model import from_proto

from .graphs import C, Net, R, excite, se_net


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(se_net(), path)
    return path


def refused(path, *parts):
    """Through the real command line: one line, exit 2, the input untouched, nothing written."""
    before, there = path.read_bytes(), set(path.parent.iterdir())
    out = path.parent / "out.onnx"
    assert_refused(tiledse("find", path), *parts)
    assert_refused(tiledse("convert", path, "--tile", "3xW", "-o", out), *parts)
    assert path.read_bytes() == before
    assert set(path.parent.iterdir()) == there


def test_no_onnx_file(tmp_path):
    path = tmp_path / "net.onnx"
    for content in (b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"plain text, no network at all\n" * 9):
        path.write_bytes(content)
        refused(path, "is no ONNX file")


def test_truncated_at_any_place(file, tmp_path):
    whole = file.read_bytes()
    for part in range(1, 40):
        file.write_bytes(whole[: len(whole) * part // 40])
        with pytest.raises(TiledSEError, match=r"no ONNX file|fails onnx.checker|opset|valid ONNX"):
            load(file)


def test_fails_the_checker(file):
    proto = onnx.load(file)
    proto.graph.node[0].input[1] = "nowhere"
    file.write_bytes(proto.SerializeToString())
    refused(file, "fails onnx.checker", "nowhere")


def test_opset_too_old(file):
    proto = onnx.load(file)
    proto.opset_import[0].version = 6
    file.write_bytes(proto.SerializeToString())
    refused(file, "opset 6", "7 or newer is read", "11 or newer")


def test_a_size_is_asked_for(file):
    onnx.save(se_net(free=(True, True, True)), file)
    refused(file, "--input CxHxW", "'x' free (3x?x?)")
    assert tiledse("find", file, "--input", "3x20x20").code == 0
    assert_refused(tiledse("find", file, "--input", "4x20x20"), "takes an input of 3x?x?")


def test_a_target_that_exists(file):
    out = file.parent / "out.onnx"
    out.write_bytes(b"precious")
    assert_refused(tiledse("convert", file, "--tile", "3xW", "-o", out), "exists", "--force")
    assert_refused(tiledse("convert", file, "--tile", "3xW", "-o", file), "exists", "--force")
    assert out.read_bytes() == b"precious"
    assert tiledse("convert", file, "--tile", "3xW", "-o", out, "--force").code == 0
    assert len(find(load(out))) == 1


def test_other_endings_and_options(file):
    out = file.parent / "out.safetensors"
    assert_refused(tiledse("convert", file, "--tile", "3xW", "-o", out), "output that ends in .onnx")
    assert_refused(tiledse("find", file, "--pretrained"), "holds its weights")
    lcnet = ("timm:lcnet_050", "--input", "3x64x64", "--tile", "3xW")
    assert_refused(tiledse("convert", *lcnet, "-o", out, "--divisor-tiles"), "--divisor-tiles goes with ONNX")
    assert_refused(tiledse("find", file.parent / "none.onnx"), "cannot read", "No such file")


def test_no_block(tmp_path):
    net = Net()
    path = tmp_path / "net.onnx"
    onnx.save(net.model(net("Conv", "x", net.weight(4, 3, 3, 3)), ("N", 3, 8, 8)), path)
    assert tiledse("find", path).code == 0
    assert_refused(
        tiledse("convert", path, "--tile", "3xW", "-o", tmp_path / "o.onnx"), "no squeeze-and-excite"
    )
    assert not (tmp_path / "o.onnx").exists()


def test_a_plan_of_another_network(file):
    plan = find(load(file))
    other = from_proto(se_net(size=(12, 9)))
    with pytest.raises(TiledSEError, match="made for input 3x10x9|takes an input of 3x12x9"):
        convert(other, plan)
    converted = convert(load(file), plan.with_tile("3xW"))
    with pytest.raises(TiledSEError, match="has another tile"):
        verify(load(file), converted, plan.with_tile("4xW"))


def test_the_network_given_stays_as_it_is():
    model = from_proto(se_net("mean", "gemm"))
    before = model.to_proto().SerializeToString()
    plan = find(model)
    converted = convert(model, plan.with_tile("3xW"))
    verify(model, converted, plan.with_tile("3xW"))
    assert model.to_proto().SerializeToString() == before


def test_nothing_half_written(file, monkeypatch):
    model = load(file)
    there = set(file.parent.iterdir())

    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_file.Path, "write_bytes", broken)
    with pytest.raises(TiledSEError, match="No space left"):
        save(model, file.parent / "out.onnx")
    assert set(file.parent.iterdir()) == there


def test_weights_beside_the_file(file, monkeypatch):
    """What is done above 1.9 GB, done here with a small limit."""
    monkeypatch.setattr(model_file, "_LARGEST_MESSAGE", 100)
    monkeypatch.setattr("tiledse.onnx.runner._LARGEST_MESSAGE", 100)
    model = load(file)
    wanted = find(model).with_tile("3xW")
    folder = file.parent / "new"
    folder.mkdir()
    save(convert(model, wanted), folder / "out.onnx")
    assert {p.name for p in folder.iterdir()} == {"out.onnx", "out.onnx.data"}
    again = load(folder / "out.onnx")
    assert find(again) == wanted
    assert verify(model, again, wanted).worst_block < 1e-6
    back = convert(again, wanted.with_tile("HxW"))
    monkeypatch.setattr(model_file, "_LARGEST_MESSAGE", 10**9)
    save(back, file.parent / "whole.onnx")
    data = folder / "out.onnx.data"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(TiledSEError, match="was cut off"):
        load(folder / "out.onnx")
    data.unlink()
    with pytest.raises(TiledSEError, match="which is missing"):
        load(folder / "out.onnx")
    assert len(find(load(file.parent / "whole.onnx"))) == 1


def test_larger_than_memory(file, monkeypatch):
    monkeypatch.setattr(model_file, "free_memory", lambda: 1000)
    refused(file, "bytes of memory are free")


def near_miss(build, free=False):
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    model = from_proto(build(net, x))
    plan = find(model)
    assert not len(plan)
    (miss,) = [m for m in plan.near_misses if m.name == "pool"]
    return miss.reason


def gates(net, z, x):
    return excite(net, z, x, "conv", "relu", "sigmoid", True, (8, 8))


def done(net, y, *more):
    return net.model(y, ("N", 3, 8, 8), more)


def test_near_misses_say_why():
    def pool(net, x):
        return net("GlobalAveragePool", x, name="pool")

    def added(net, x):
        return done(net, net("Add", x, gates(net, pool(net, x), x)))

    assert "goes into Add" in near_miss(added)

    def other_map(net, x):
        return done(
            net, net("Mul", net("Relu", net("Conv", x, net.weight(C, C, 1, 1))), gates(net, pool(net, x), x))
        )

    assert "is not what is pooled" in near_miss(other_map)

    def maximum(net, x):
        return done(net, net("Mul", x, gates(net, net("GlobalMaxPool", x, name="pool"), x)))

    assert "a maximum (GlobalMaxPool)" in near_miss(maximum)

    def no_layer(net, x):
        return done(net, net("Mul", x, net("Sigmoid", pool(net, x))))

    assert "no dense layer" in near_miss(no_layer)

    def eca(net, x):
        z = net("Reshape", pool(net, x), net.ints(0, 1, C))
        z = net("Conv", z, net.weight(1, 1, 3), pads=[1, 1])
        return done(net, net("Mul", x, net("Reshape", net("Sigmoid", z), net.ints(0, C, 1, 1))))

    assert "along the channels" in near_miss(eca)

    def grouped(net, x):
        z = net("Conv", pool(net, x), net.weight(C, 1, 1, 1), group=C)
        return done(net, net("Mul", x, net("Sigmoid", z)))

    assert "no dense 1x1 layer" in near_miss(grouped)

    def one_gate(net, x):
        return done(net, net("Mul", x, net("Sigmoid", net("Conv", pool(net, x), net.weight(1, C, 1, 1)))))

    assert "one gate for all channels" in near_miss(one_gate)

    def tapped(net, x):
        g = gates(net, pool(net, x), x)
        return done(net, net("Mul", x, g), g)

    assert "is an output of the network" in near_miss(tapped)

    def shared_gate(net, x):
        g = gates(net, pool(net, x), x)
        return done(net, net("Add", net("Mul", x, g), net("Mul", x, g)))

    assert "as well" in near_miss(shared_gate)

    def quantised(net, x):
        z = pool(net, x)
        scale, zero = net.scalar(0.1), net.const(np.array(0, np.uint8))
        z = net("DequantizeLinear", net("QuantizeLinear", z, scale, zero), scale, zero)
        return done(net, net("Mul", x, gates(net, z, x)))

    assert "quantised" in near_miss(quantised)

    def classifier(net, x):
        return done(net, net("Conv", pool(net, x), net.weight(5, C, 1, 1)))

    assert "goes to the output" in near_miss(classifier)


def test_quantised_around_the_block_is_converted():
    """QDQ with float descriptors: the map is dequantised twice, and so are the weights."""
    net = Net()
    scale, zero = net.scalar(0.05), net.const(np.array(128, np.uint8))
    x = net("QuantizeLinear", net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1))), scale, zero)
    one, two = (net("DequantizeLinear", x, scale, zero) for _ in range(2))
    stored = net.const(net.random.integers(-99, 99, (R, C, 1, 1)).astype(np.int8))
    weight = net("DequantizeLinear", stored, net.scalar(0.02), net.const(np.array(0, np.int8)))
    z = net("Relu", net("Conv", net("GlobalAveragePool", one, name="pool"), weight, net.weight(R)))
    g = net("Sigmoid", net("Conv", z, net.weight(C, R, 1, 1), net.weight(C)))
    model = from_proto(net.model(net("Mul", two, g), ("N", 3, 10, 8)))
    wanted = find(model).with_tile("4xW")
    assert len(wanted) == 1
    assert verify(model, convert(model, wanted), wanted).worst_block < 1e-6


def test_control_flow_around_a_block():
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    inner = Net(seed=1)
    y = inner("Mul", x, gates(inner, inner("GlobalAveragePool", x, name="pool"), x))
    out = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)]
    for node in inner.nodes:
        node.output[0] = "i" + node.output[0]
        node.input[:] = ["i" + n if n.startswith("v") and n != x else n for n in node.input]
    for weight in inner.weights:
        weight.name = "i" + weight.name
    for node in inner.nodes:
        node.input[:] = ["i" + n if n.startswith("w") else n for n in node.input]
    out[0].name = "i" + y
    yes = helper.make_graph(inner.nodes, "yes", [], out, inner.weights)
    no = helper.make_graph(
        [helper.make_node("Identity", [x], ["same"])],
        "no",
        [],
        [helper.make_tensor_value_info("same", 1, None)],
    )
    flag = net("Greater", net("ReduceMax", "x", keepdims=0), net.scalar(0))
    model = from_proto(
        net.model(net("If", flag, name="choice", then_branch=yes, else_branch=no), ("N", 3, 8, 8))
    )
    plan = find(model)
    assert not len(plan)
    assert [m.reason for m in plan.near_misses] == [
        "it lies within If 'choice'; blocks under control flow are left alone"
    ]


def test_shared_weights():
    """Two blocks on one set of weights, one converted: the other keeps them."""
    net = Net()
    w = [net.weight(R, C), net.weight(R), net.weight(C, R), net.weight(C)]
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    for i in range(2):
        z = net("Flatten", net("GlobalAveragePool", x, name=f"pool{i}"))
        z = net("Relu", net("Gemm", z, *w[:2], transB=1))
        z = net("Sigmoid", net("Gemm", z, *w[2:], transB=1))
        x = net("Mul", x, net("Reshape", z, net.ints(-1, C, 1, 1)))
    model = from_proto(net.model(x, ("N", 3, 10, 8)))
    plan = find(model)
    for wanted in (plan.first(1, "4xW"), plan.with_tile("3xW")):
        converted = convert(model, wanted)
        assert find(converted) == wanted
        assert verify(model, converted, wanted).worst_block < 1e-6
    assert plan.network.params == C * 3 + 2 * R * C + R + C


@pytest.mark.parametrize(
    ("tiles", "why"),
    [
        (("7xW", "Hx7"), "has tile Hx7"),
        (("7xW", "4xW"), "4, 7 rows"),
        (("HxW", "7xW"), "left whole before"),
        (("5xW", "HxW"), "do not fill evenly"),
        (("HxW", "HxW"), "tiles no block"),
        (("7xW:running", "HxW"), "has tile 7xW:running"),
    ],
)
def test_a_plan_that_hailo_has_no_line_for(tiles, why):
    from tiledse.plan import Plan, SEBlock
    from tiledse.tile import Tile

    blocks = tuple(SEBlock(f"b{i}", 64, 16, 28, 28, "onnx.SE") for i in range(2))
    with pytest.raises(TiledSEError, match=why):
        alls(Plan(blocks, tuple(map(Tile.parse, tiles)), (3, 224, 224)))
