"""The file of a step: what it says of itself, its runner, states in other processes, wrong use, and the verb."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import onnx
import tiledse as ts
from tests.choose.networks import SIZE, small
from tests.cli.known import Gate
from tests.cli.test_json import check as check_json
from tests.stream.networks import whole
from tests.stream.test_calibrated import corrected
from tiledse.cli import main
from tiledse.report.steps import exported_record
from tiledse.stream.step.header import KEY
from tiledse.stream.step.making import make_step
from tiledse.stream.step.proof import check_files
from tiledse.stream.step.run import StepRun
from tiledse.stream.step.runner import header_of, is_step
from tiledse.stream.step.sessions import TorchSession

WIDTH = 12


class Net(nn.Module):
    """A map and logits; strides of 2 and a window."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.se = ts.TiledSqueezeExcite(6, 3, "HxW")
        self.conv = nn.Conv2d(6, 6, 3, 1, 1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.se(torch.relu(self.norm(self.stem(x))))
        x = self.pool(self.conv(x)) + x
        return {"map": x, "logits": self.head(x.mean((2, 3)))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network, its plan, and the file of its step."""
    torch.manual_seed(0)
    model = Net().eval()
    nn.init.uniform_(model.norm.running_mean)
    plan = ts.find(model, (3, 31, WIDTH)).with_tile("3xW:running+1")
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    return model, plan, path, ts.export_step(model, plan, path, rows=12)


def image(height: int) -> np.ndarray:
    return np.random.default_rng(height).standard_normal((1, 3, height, WIDTH)).astype(np.float32)


def check(got, model, plan, x) -> None:
    expected = whole(model, plan, torch.from_numpy(x))
    for name in expected:
        assert got[name].shape == tuple(expected[name].shape)
        scale = float(expected[name].abs().max())
        np.testing.assert_allclose(got[name], expected[name].numpy(), rtol=0, atol=2e-5 * scale)


def test_the_file_says_what_it_takes(exported):
    _, _, path, made = exported
    assert made.max_rel_error < 1e-5
    assert made.max_rel_error_file < 1e-5
    graph = onnx.load(path).graph
    given = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    header = made.header
    assert given == {
        "image": [1, 3, header.window, WIDTH], "first": [1], "height": [1],
        **{f"state.{s.name}": list(s.shape) for s in header.states},
    }  # fmt: skip
    names = [v.name for v in graph.output]
    assert names == ["map", "logits", "rows", *(f"next.{s.name}" for s in header.states)]
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)
    assert header == header_of(path)
    assert (header.rows, header.unit, header.height, header.tiles) == (12, 6, None, {"se": "3xW:running+1"})
    assert {"se:sum", "se:rest", "conv:rows"} < {s.name for s in header.states}
    assert "/" not in json.dumps(json.loads(onnx.load(path).metadata_props[0].value)["versions"])


@pytest.mark.parametrize("height", [1, 5, 12, 13, 24, 41])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_images_of_any_height(exported, height, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    model, plan, path, _ = exported
    x = image(height)
    for told in (None, height):
        check(ts.StepRunner(path, told, backend=backend)(x), model, plan, x)


def test_a_runner_by_hand_needs_the_file_alone(exported):
    """What a runner in any language does: shapes and start values from the metadata, three numbers from the table."""
    import onnxruntime as ort

    model, plan, path, _ = exported
    header = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}[KEY])
    session, x = ort.InferenceSession(path), image(41)
    state = {f"state.{s['name']}": np.full(s["shape"], s["start"], np.float32) for s in header["states"]}
    heads = {head["name"]: [] for head in header["heads"]}
    names = [out.name for out in session.get_outputs()]
    for first in range(header["begin"], 400, header["rows"]):
        rows = np.zeros((1, 3, header["window"], WIDTH), np.float32)
        there = x[:, :, max(0, first) : max(0, first + header["window"])]
        rows[:, :, max(0, -first) : max(0, -first) + there.shape[2]] = there
        known = 41 if first + header["window"] >= 41 else 1 << 24
        given = dict(zip(names, session.run(None, {
            "image": rows, "first": np.array([first]), "height": np.array([known]), **state,
        })))  # fmt: skip
        state = {name: given[name.replace("state.", "next.", 1)] for name in state}
        for head, (low, high, _) in zip(header["heads"], given["rows"]):
            if high > low:
                part = given[head["name"]]
                heads[head["name"]].append(part if head["row_dim"] is None else part[:, :, low:high])
        if not given["rows"][:, 2].any():
            break
    check({n: np.concatenate(p, 2) if n == "map" else p[0] for n, p in heads.items()}, model, plan, x)


def test_a_state_goes_on_in_another_process(exported, tmp_path):
    model, plan, path, _ = exported
    x, runner = image(41), ts.StepRunner(path)
    before = runner.push(x[:, :, :29])
    runner.save(tmp_path / "state.safetensors")
    np.save(tmp_path / "rest.npy", x[:, :, 29:])
    script = (
        "import sys, numpy as np, tiledse as ts\n"
        "folder, step = sys.argv[1:]\n"
        "runner = ts.StepRunner(step)\n"
        "runner.load(folder + '/state.safetensors')\n"
        "assert runner.seen == 29\n"
        "pushed = runner.push(np.load(folder + '/rest.npy'), 29)\n"
        "np.savez(folder + '/out.npz', pushed=pushed['map'], **runner.finish())\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(path)], check=True)
    after = np.load(tmp_path / "out.npz")
    rows = np.concatenate([before["map"], after["pushed"], after["map"]], 2)
    check({"map": rows, "logits": after["logits"]}, model, plan, x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r: r.push(image(4)[..., 1:]), r"expected \(1, 3, rows, 12\), got \(1, 3, 4, 11\)"),
        (lambda r: r.push(image(4)[0]), "rows 10 and on"),
        (lambda r: r.push([1, 2]), "got list"),
        (lambda r: r.push(image(4), 12), "expected row 10 next, got row 12: 2 dropped"),
        (lambda r: r.push(image(4), 9), "1 sent twice"),
        (lambda r: r.push(image(4) * np.inf), r"row 10 holds .* not finite \(column 0, channel 0\)"),
        (lambda r: r.push(image(4).astype(np.float64)), "expected rows of float32, got float64"),
        (lambda r: r.push(image(20)), "30 rows came, the image has 29"),
        (lambda r: r.finish(), "ended after 10 rows, expected 29"),
        (lambda r: r.load("nowhere"), "no state of a step nowhere"),
    ],
)
def test_wrong_rows_leave_the_state_as_it_was(exported, wrong, message):
    model, plan, path, _ = exported
    x, runner = image(29), ts.StepRunner(path, 29)
    parts = [runner.push(x[:, :, :10])]
    with pytest.raises(ts.TiledSEError, match=message):
        wrong(runner)
    parts += [runner.push(x[:, :, 10:]), runner.finish()]
    rows = np.concatenate([p["map"] for p in parts if p["map"] is not None], 2)
    check({"map": rows, "logits": parts[1]["logits"]}, model, plan, x)


def test_states_of_others_and_damaged_ones(exported, tmp_path):
    _, _, path, made = exported
    runner, state = ts.StepRunner(path), tmp_path / "state.safetensors"
    with pytest.raises(ts.TiledSEError, match="ended before its first row"):
        runner.finish()
    runner.push(image(17))
    runner.save(state)
    with pytest.raises(ts.TiledSEError, match="of an image of None rows, this run takes 31"):
        ts.StepRunner(path, 31).load(state)
    data = state.read_bytes()
    for change, message in (
        (data[:-4] + b"\0\0\0\1", "damaged: it was changed"),
        (data[:-4] + b"\0\0\xc0\x7f", "damaged: .* not finite"),
        (data[:60], "is no state"),
        (re.sub(rb'"step\W+', lambda m: m[0] + b"0", data)[: len(data)], "."),
    ):
        (tmp_path / "bad").write_bytes(change)
        with pytest.raises(ts.TiledSEError, match=message):
            runner.load(tmp_path / "bad")
    assert runner.seen == 17
    proto = onnx.load(path)
    proto.metadata_props[0].value = proto.metadata_props[0].value.replace(made.header.identity, "0" * 32)
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ts.TiledSEError, match="of another step"):
        ts.StepRunner(tmp_path / "other.onnx").load(state)


def test_files_that_are_no_steps(exported, tmp_path):
    _, _, path, _ = exported
    proto = onnx.load(path)
    value = proto.metadata_props[0].value
    for text, message in (
        (value[:-9], "damaged header"),
        (value.replace('"rows": 12', '"rows": -1'), "expected rows to be a number from 1 on, got -1"),
        (value.replace("tiledse.step/2", "tiledse.step/9"), "expected tiledse.step/2"),
        (None, "is no step; make one with: tiledse stream MODEL"),
    ):
        del proto.metadata_props[:]
        if text is not None:
            proto.metadata_props.add(key=KEY, value=text)
        onnx.save(proto, tmp_path / "bad.onnx")
        with pytest.raises(ts.TiledSEError, match=message):
            ts.StepRunner(tmp_path / "bad.onnx")
    assert not is_step(tmp_path / "bad.onnx")
    assert not is_step("timm:lcnet_050")
    with pytest.raises(ts.TiledSEError, match="cannot read nowhere.onnx: No such file"):
        ts.StepRunner("nowhere.onnx")
    with pytest.raises(ts.TiledSEError, match="expected the backend onnxruntime or openvino, got 'tvm'"):
        ts.StepRunner(path, backend="tvm")
    # The step without edges beside it may be missing, or be another's.
    shutil.copy(path, tmp_path / "step.onnx")
    assert list(ts.StepRunner(tmp_path / "step.onnx").session.sessions) == ["step"]
    shutil.copy(path.with_name("step.middle.onnx"), tmp_path / "step.middle.onnx")
    assert list(ts.StepRunner(tmp_path / "step.onnx").session.sessions) == ["step", "middle"]


@pytest.mark.slow
def test_a_stream_with_a_runtime_is_a_stream(exported, tmp_path):
    model, plan, _, _ = exported
    x = torch.from_numpy(image(41))
    expected = whole(model, plan, x)
    stream = ts.stream(model, plan, height=41, backend="onnxruntime", rows=10)
    assert stream.rows == 12
    for chunk in (None, 7):
        got = stream(x, chunk)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=0, atol=2e-5)
    assert [held.name for held in stream.held() if held.kind == "gate"] == ["se"]
    assert stream.whole == {}
    with pytest.raises(ts.TiledSEError, match="float32, the network has torch.float64"):
        ts.stream(Net().double().eval(), plan, backend="onnxruntime")


def test_the_verb(exported, tmp_path, capsys):
    _, _, path, _ = exported
    pixels = np.random.default_rng(0).integers(0, 256, (41, WIDTH, 3), np.uint8)
    np.save(tmp_path / "image.npy", pixels)
    assert (
        main(["stream", str(path), str(tmp_path / "image.npy"), "-o", str(tmp_path / "o.npy"), "--json"]) == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["outputs"] == {"map": [1, 6, 21, 6], "logits": [1, 4]}
    assert record["state_bytes"] > 0
    x = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255))
    expected = ts.StepRunner(path)(x)
    for name in expected:
        np.testing.assert_allclose(np.load(tmp_path / f"o.{name}.npy"), expected[name], rtol=0, atol=1e-6)
    lcnet = ["timm:lcnet_050", "--input", "3x32x32"]
    for options, message in (
        ([str(path)], "give an image for it"),
        ([str(path), str(tmp_path / "image.npy"), "--tile", "7xW"], "leave --tile out"),
        ([str(path), str(tmp_path / "image.npy"), "--rows", "12"], "leave --rows out"),
        ([str(path), str(tmp_path / "image.npy"), "--backend", "torch"], "onnxruntime or openvino"),
        ([*lcnet, "--tile", "7xW", "--export", str(tmp_path / "a.pt")], r"expected .* \.onnx"),
        ([*lcnet, "--tile", "7xW", "--export", str(path)], "exists"),
        ([*lcnet, "--tile", "7xW", "--alone", "--export", "a.onnx"], "--alone runs an image"),
        (
            [*lcnet, "--tile", "HxW", "--export", str(tmp_path / "a.onnx")],
            "whole map: it would hold",
        ),
        (
            [*lcnet, "--tile", "1xW", "--rows", "9", "--export", str(tmp_path / "a.onnx")],
            "multiples of 32",
        ),
    ):
        assert main(["stream", *options]) == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split())), message
    assert not (tmp_path / "a.onnx").exists()


def test_the_verb_goes_on_from_a_state(exported, tmp_path, capsys):
    """An image in three files, by the command line; what is wrong with a file or a state leaves it as it was."""
    _, _, path, made = exported
    pixels = np.random.default_rng(1).integers(0, 256, (61, WIDTH, 3), np.uint8)
    x = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255))
    expected = ts.StepRunner(path)(x)
    parts = {"a": pixels[:5], "b": pixels[5:40], "c": pixels[40:]}
    for name, part in parts.items():
        np.save(tmp_path / f"{name}.npy", part)
    at = lambda name: str(tmp_path / name)  # noqa: E731
    stream = lambda *more: main(["stream", str(path), *more])  # noqa: E731
    assert stream(at("a.npy"), "--save-state", at("a.safetensors"), "-o", at("ao.npy"), "--json") == 0
    record = json.loads(capsys.readouterr().out)
    check_json("stream STEP.onnx", record)
    assert record["outputs"] == {"map": None, "logits": None}
    check_json("stream --export", {"model": "net", **exported_record(made)})
    assert not list(tmp_path.glob("ao*"))  # nothing has come of five rows
    go_on, of_b = ("--state", at("a.safetensors"), "--first-row", "5"), ("--state", at("b.safetensors"))
    assert stream(at("b.npy"), *go_on, "--save-state", at("b.safetensors"), "-o", at("bo.npy")) == 0
    assert "none yet" in capsys.readouterr().out
    before = (tmp_path / "b.safetensors").read_bytes()
    damaged = bytearray(before)
    damaged[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    proto = onnx.load(path)
    proto.metadata_props[0].value = proto.metadata_props[0].value.replace(made.header.identity, "0" * 32)
    onnx.save(proto, tmp_path / "other.onnx")
    told = ts.StepRunner(path, 62)
    told.push(x[:, :, :40])
    told.save(tmp_path / "told.safetensors")
    out = "-o", at("wrong.npy")
    for arguments, message in (
        ((at("c.npy"), *of_b, "--first-row", "41"), "expected row 40 next, got row 41: 1 dropped"),
        ((at("b.npy"), *of_b, "--first-row", "5"), "got row 5: 35 sent twice"),
        ((at("c.npy"), "--first-row", "40"), "expected row 0 next, got row 40: 40 dropped"),
        ((at("c.npy"), "--state", at("told.safetensors")), "the image ended after 61 rows, expected 62"),
        ((at("b.npy"), "--state", at("told.safetensors")), "rows came, the image has 62 at the most"),
        ((at("c.npy"), "--state", at("damaged.safetensors")), "is damaged: it was changed"),
        ((at("c.npy"), "--state", at("c.npy")), "is no state of a step"),
        ((at("c.npy"), "--state", at("nowhere")), "no state of a step"),
        ((at("c.npy"), "--save-state", at("a.npy")), "safetensors"),
        ((at("c.npy"), "--save-state", at("b.safetensors")), "exists"),
        ((at("c.npy"), *of_b, "--save-state", at("b.safetensors"), "--force"), "b.safetensors"),
    ):  # fmt: skip
        assert stream(*arguments, *out) == 2, message
        err = capsys.readouterr().err
        assert message in " ".join(err.split()), err
        assert "Traceback" not in err
    assert main(["stream", at("other.onnx"), at("c.npy"), "--state", at("b.safetensors")]) == 2
    assert "is of another step" in " ".join(capsys.readouterr().err.split())
    assert main(["stream", "timm:lcnet_050", "--tile", "1xW", "--state", at("b.safetensors")]) == 2
    assert "--state is for the file of a step" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("wrong*"))
    assert (tmp_path / "b.safetensors").read_bytes() == before
    assert stream(at("c.npy"), "--state", at("b.safetensors"), "--first-row", "40", "-o", at("co.npy")) == 0
    rows = np.concatenate([np.load(tmp_path / f"{name}o.map.npy") for name in "bc"], 2)
    np.testing.assert_allclose(rows, expected["map"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "co.logits.npy"), expected["logits"], rtol=0, atol=1e-5)


def test_two_exports_are_one_file(exported, tmp_path):
    """No clock and no chance in what a step is: the search of what to keep ends by counting."""
    model, plan, _, made = exported
    again = ts.export_step(model, plan, tmp_path / "step.onnx", rows=12)
    assert again.header == made.header
    for what, file in again.files.items():
        assert file.read_bytes() == made.files[what].read_bytes(), what


@pytest.mark.slow
def test_two_exports_are_one_file_on_a_busy_machine(tmp_path):
    """Of a network whose search takes a second, beside eight processes that take all that there is."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_100").eval()
    plan = ts.find(model, (3, 224, 128)).with_tile("1xW:running")
    files = []
    for busy in (0, 8):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            made = ts.export_step(model, plan, tmp_path / f"{busy}.onnx", rows=64, width=128)
        finally:
            for other in others:
                other.kill()
                other.wait()
        files.append([file.read_bytes() for file in made.files.values()])
    assert files[0] == files[1]


def test_a_height_that_must_be_known_on_the_command_line(tmp_path, capsys):
    model = small()
    plan = corrected(model, ts.find(model, SIZE).with_tile("2xW:running"))
    plan.save(tmp_path / "plan.json")
    path = tmp_path / "step.onnx"
    arguments = [
        "stream",
        "tests.choose.networks:small",
        "--input",
        "x".join(map(str, SIZE)),
        "--export",
        str(path),
    ]
    assert main([*arguments, "--plan", str(tmp_path / "plan.json"), "--any-height"]) == 2
    assert "height must be known: block" in " ".join(capsys.readouterr().err.split())
    assert not path.exists()


def test_a_head_that_finds_nothing_in_random_numbers(tmp_path):
    """ONNX Runtime's sigmoid is right to 2e-7 of 1: of outputs of 1e-6 that is a tenth."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), Gate(4, 2), nn.Conv2d(4, 1, 1), nn.Sigmoid()).eval()
    nn.init.constant_(model[2].bias, -14.0)
    plan = ts.find(model, (3, 31, WIDTH)).with_tile("1xW:running")
    made = ts.export_step(model, plan, tmp_path / "step.onnx")
    assert made.max_rel_error_file < 1e-5
    # Another weight is told from it all the same.
    made = make_step(model, plan)
    files = {"step": tmp_path / "step.onnx"}
    assert check_files(made, files) < 1e-5
    proto = onnx.load(files["step"])
    (bias,) = (t for t in proto.graph.initializer if -14 in onnx.numpy_helper.to_array(t))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([-13.9], np.float32), bias.name))
    onnx.save(proto, files["step"])
    with pytest.raises(ts.TiledSEError, match=r"the file differs from the step in torch by .*; nothing was"):
        check_files(made, files)


class Forked(nn.Module):
    """Takes 32 and 33 rows, and not 34: heights in multiples of four and one more."""

    def __init__(self):
        super().__init__()
        self.down, self.more, self.se = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2), Gate(4, 2)

    def forward(self, x):
        x = self.down(x)
        return self.se(x + nn.functional.interpolate(self.more(x), scale_factor=2.0))


def test_heights_that_the_network_does_not_take():
    model = Forked().eval()
    plan = ts.find(model, (3, 32, 16)).with_tile("1xW:running")
    assert make_step(model, plan).header.multiple == 4
    stream = ts.stream(model, plan, height=None)
    first = stream.push(torch.zeros(1, 3, 34, 16))
    with pytest.raises(
        ts.TiledSEError, match=r"34 rows: layer '.*' would join a map of 16 rows with one of 17"
    ):
        stream.finish()
    parts = [
        first,
        stream.push(torch.zeros(1, 3, 2, 16), 34),
        stream.finish(),
    ]  # the state was left as it was
    assert sum(part.shape[2] for part in parts if part is not None) == 18


class PadsByHeight(nn.Module):
    """TensorFlow's "same" padding: odd heights get a row above, even ones none."""

    def __init__(self):
        super().__init__()
        self.down, self.more, self.se = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), Gate(4, 2)

    def forward(self, x):
        for layer in (self.down, self.more):
            rows = 1 + x.shape[2] % 2
            x = layer(nn.functional.pad(x, (0, 1, rows // 2, rows - rows // 2)))
        return self.se(x)


def test_the_schedule_is_that_of_the_heights_that_are_taken():
    """Traced at 31 rows, which are padded in another way than the multiples of 4 that a step of any height takes."""
    model = PadsByHeight().eval()
    plan = ts.find(model, (3, 31, 16)).with_tile("2xW")
    made = make_step(model, plan)
    assert made.header.multiple == 4
    for height in (16, 36):
        x = torch.randn(1, 3, height, 16)
        got = StepRun(TorchSession(made.step, made.middle), made.header, height)(x.numpy())
        expected = whole(model, ts.find(model, (3, height, 16)).with_tile("2xW"), x)
        np.testing.assert_allclose(got["output"], expected.numpy(), rtol=0, atol=1e-5)
