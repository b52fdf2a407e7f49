"""TensorFlow Lite files as they come: cut off, made to do harm, without scales, with operators nobody knows."""

from __future__ import annotations

import builtins
import random
import warnings

import pytest

import tiledse as ts
from tiledse.errors import TiledSEError
from tiledse.tflite import schema as reading

from .graphs import Builder, Net, fb, quantised


def reasons(path):
    plan = ts.find(path)
    assert not plan.blocks
    return {miss.name: miss.reason for miss in plan.near_misses}


def test_a_file_that_is_cut_off_or_changed_is_one_line(tmp_path):
    """Never a crash, never anything but our error; what still reads is looked at to the end."""
    data, path = Net().builder.bytes(), tmp_path / "net.tflite"
    chance = random.Random(0)
    files = [data[: chance.randrange(len(data))] for _ in range(60)]
    for _ in range(500):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 4, 40))):
            changed[chance.randrange(len(data))] = chance.choice((0, 255, chance.randrange(256)))
        files.append(bytes(changed))
    said = []
    for made in files:
        path.write_bytes(made)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ts.find(path)
            except TiledSEError as error:
                said.append(str(error))
    assert len(said) > 100
    assert not [line for line in said if "\n" in line]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not begin as one"),
        (b"PK\x03\x04" + bytes(64), "does not begin as one"),
        (b"\xff\xff\xff\x7fTFL3" + bytes(64), "leads to byte"),
        (b"\x10\x00\x00\x00TFL3" + bytes(8), "leads to byte"),
    ],
)
def test_no_file_of_the_format(tmp_path, data, said):
    path = tmp_path / "net.tflite"
    path.write_bytes(data)
    with pytest.raises(
        TiledSEError, match=f"net.tflite is no TensorFlow Lite file, or it was cut off: .*{said}"
    ):
        ts.open(path)


def test_indices_that_lead_nowhere(tmp_path):
    def changed(change):
        net = Net()
        change(net.builder)
        return net.write(tmp_path / "net.tflite")

    def last(b):
        return b.graph.operators[-1]

    for change, said in [
        (lambda b: setattr(last(b), "opcodeIndex", 99), "code 99"),
        (lambda b: setattr(last(b), "inputs", [1000, 1]), "input is tensor 1000"),
        (lambda b: setattr(last(b), "outputs", [1000]), "output is tensor 1000"),
        (lambda b: setattr(b.graph, "outputs", [1000]), "output is tensor 1000"),
        (lambda b: setattr(b.graph.tensors[1], "buffer", 1000), "buffer 1000"),
        (lambda b: setattr(b.graph.tensors[1], "shape", [9, 9, 9, 9]), "lies in"),
        (lambda b: b.graph.operators.reverse(), "a later one gives"),
        (lambda b: setattr(b.model, "version", 2), "version 2"),
        (lambda b: setattr(b.model, "subgraphs", []), "no graph"),
    ]:
        with pytest.raises(TiledSEError, match=said):
            ts.open(changed(change))


def test_what_crashes_another_process_crashes_nothing_here(tmp_path, monkeypatch):
    from tiledse.tflite import trying

    monkeypatch.setattr(trying, "_CODE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    network = ts.open(Net(seed=77).write(tmp_path / "net.tflite"))
    with pytest.raises(TiledSEError, match="LiteRT crashes on .*net.tflite"):
        network.convert(network.se.with_tile("4xW"))


def test_near_misses_and_their_reasons(tmp_path):
    path = tmp_path / "net.tflite"
    assert "custom operator Odd" in reasons(Net(custom=True).write(path))["pooled"]
    assert "what is gated ('rectified'" in reasons(Net(other=True).write(path))["pooled"]
    head = Net()
    head.builder.graph.operators.pop()  # the last mean, over the product
    options = fb.Pool2DOptionsT(padding=1, strideH=1, strideW=1, filterHeight=12, filterWidth=5)
    pooled = head.builder.tensor("head", (1, 1, 1, 6))
    head.builder.graph.outputs = [head.builder.op("AVERAGE_POOL_2D", [head.map], pooled, options)]
    (miss,) = ts.find(head.write(path)).near_misses
    assert miss.reason == "what it pools goes to the output 'head', not into a product with the map"
    path.write_bytes(quantised(scale=None).bytes())
    assert reasons(path) == {"pooled": "its map is of type INT8 and has no scale; quantise the network again"}
    assert not miss.gates
    (miss,) = ts.find(path).near_misses
    assert miss.gates
    with pytest.raises(
        TiledSEError, match="no squeeze-and-excite block that takes tiles: 'pooled': its map is of"
    ):
        ts.find(path).with_tile("4xW")


def test_a_custom_operator_in_the_way_of_running(tmp_path):
    """A file with blocks that another operator keeps from running: found, and refused where it has to run."""
    net = Net()
    b = net.builder
    out = b.graph.outputs[1]
    b.graph.outputs = [b.op("CUSTOM", [out], b.tensor("end", (1, 6)), custom="Odd")]
    network = ts.open(net.write(tmp_path / "net.tflite"))
    assert len(network.plan) == 1
    assert network.plan.network.uncounted == ("custom Odd",)
    with pytest.raises(TiledSEError, match="has the custom operator Odd"):
        network.convert(network.se.with_tile("4xW"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: ts.open(p, (3, 20, 5)), "takes images of 3x12x5"),
        (lambda p: ts.open(p, pretrained=True), "holds its weights"),
        (lambda p: ts.open(p, device="cuda"), "runs in LiteRT on the CPU"),
        (lambda p: ts.open(p, image="picture"), "no input 'picture'; its inputs are: 'image' 1x12x5x3"),
        (lambda p: ts.open("absent.tflite"), "cannot read absent.tflite"),
        (lambda p: ts.stream(ts.open(p), ts.find(p)), "takes a network of PyTorch"),
        (lambda p: ts.write(ts.open(p), ts.find(p), "a.onnx"), "ends in .tflite"),
        (lambda p: ts.write(ts.open(p), ts.find(p), "a.tflite", ts.Form(batch=2)), "--batch goes with ONNX"),
    ],
)
def test_wrong_use(tmp_path, call, said):
    with pytest.raises(TiledSEError, match=said):
        call(Net().write(tmp_path / "net.tflite"))


def test_a_graph_without_an_image(tmp_path):
    b = Builder()
    b.graph.inputs = [b.tensor("a", (3,))]
    b.graph.outputs = [b.op("ABS", [b.graph.inputs[0]], b.tensor("b", (3,)))]
    (tmp_path / "net.tflite").write_bytes(b.bytes())
    with pytest.raises(TiledSEError, match="expected one input of 4 axes"):
        ts.open(tmp_path / "net.tflite")


def test_without_the_package_there_is_one_clear_line(tmp_path, monkeypatch):
    path, real = Net().write(tmp_path / "net.tflite"), builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "flatbuffers":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *rest, **more)

    reading.schema.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    try:
        with pytest.raises(
            TiledSEError,
            match=r"^TensorFlow Lite files need the package ai-edge-litert; .* install .*ai-edge-litert",
        ):
            ts.open(path)
    finally:
        reading.schema.cache_clear()


def test_control_flow_is_left_alone(tmp_path):
    net = Net()
    inner = fb.SubGraphT(tensors=[fb.TensorT(shape=[1, 2, 2, 1], name=b"m"), fb.TensorT(shape=[1, 1], name=b"within")],
                         inputs=[0], outputs=[1])  # fmt: skip
    code = next(
        i for i, c in enumerate(net.builder.model.operatorCodes) if c.builtinCode == fb.BuiltinOperator.MEAN
    )
    inner.operators = [fb.OperatorT(opcodeIndex=code, inputs=[0, 0], outputs=[1])]
    net.builder.model.subgraphs.append(inner)
    plan = ts.find(net.write(tmp_path / "net.tflite"))
    assert len(plan) == 1
    assert "control flow" in {m.name: m.reason for m in plan.near_misses}["within"]
