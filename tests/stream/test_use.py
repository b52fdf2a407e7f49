"""Wrong use, saved states, images on disk, and the two verbs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.stream.networks import Small, build, difference, whole
from tiledse.cli import main
from tiledse.stream.sources import ImageRows, write_rows

SIZE = (29, 19)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Small().double().eval()
    return model, ts.find(model, (3, *SIZE)).with_tile("2xW:running")


@pytest.fixture(scope="module")
def image():
    torch.manual_seed(1)
    return torch.randn(1, 3, *SIZE, dtype=torch.float64)


@pytest.fixture(scope="module")
def going(network, image):
    """A stream, and what it must give."""
    model, plan = network
    return ts.stream(model, plan, rows=8), whole(model, plan, image)


def bad(**change):
    rows = torch.zeros(1, 3, 4, 19, dtype=torch.float64)
    if "shape" in change:
        rows = torch.zeros(*change["shape"], dtype=torch.float64)
    if "value" in change:
        rows[0, 1, 2, 5] = change["value"]
    return rows


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.push(bad(shape=(1, 3, 4, 18))), r"expected \(1, 3, rows, 19\), got \(1, 3, 4, 18\)"),
        (lambda s: s.push(bad(shape=(3, 4, 19))), r"rows 10 and on"),
        (lambda s: s.push(bad(), start=12), "expected row 10 next, got row 12: 2 dropped"),
        (lambda s: s.push(bad(), start=9), "1 sent twice"),
        (lambda s: s.push(bad(value=float("nan"))), r"row 12 holds .* not finite \(column 5, channel 1\)"),
        (lambda s: s.push(bad(value=float("inf"))), "not finite"),
        (lambda s: s.push(bad(shape=(1, 3, 20, 19))), "30 rows came, the image has 29"),
        (lambda s: s.push(bad().int()), r"expected rows of torch.float64 on cpu, .* got torch.int32"),
        (lambda s: s.push(bad().float()), "got torch.float32"),
        (lambda s: s.push([1, 2]), "got list"),
        (lambda s: s.finish(), "ended after 10 rows, expected 29"),
    ],
)
def test_wrong_rows_leave_the_state_as_it_was(image, wrong, message, going):
    stream, expected = going
    parts = [stream.push(image[:, :, :10])]
    with pytest.raises(ts.TiledSEError, match=message):
        wrong(stream)
    parts += [stream.push(image[:, :, 10:]), stream.finish()]
    rows = torch.cat([p["maps"][0] for p in parts if p["maps"][0] is not None], 2)
    assert difference(rows, expected["maps"][0]) < 1e-12


def test_what_cannot_be_streamed_is_told(network):
    model, plan = network
    with pytest.raises(ts.TiledSEError, match="the height must be known: .* resizes"):
        ts.stream(model, plan, height=None)
    same = build("timm:tf_mobilenetv3_small_075")
    with pytest.raises(ts.TiledSEError, match="height must be known: layer 'conv_stem' pads by the height"):
        ts.stream(same, ts.find(same, (3, 64, 64)), height=None)
    with pytest.raises(ts.TiledSEError, match="at least 1"):
        ts.stream(model, plan, rows=0)
    with pytest.raises(ts.TiledSEError, match="height"):
        ts.stream(model, plan, height=0)

    class Branches(Small):
        def forward(self, x):
            return self.se(self.stem(x)) if float(x.sum()) > 1 else self.se(self.stem(-x))

    branches = Branches().eval()
    found = ts.Plan(plan.blocks[:1], plan.tiles[:1], plan.input_size)
    with pytest.raises(ts.TiledSEError, match="cannot be traced at input 3x29x19"):
        ts.stream(branches, found)


def test_a_saved_state_goes_on_in_another_stream(network, image, tmp_path):
    model, plan = network
    one, two = (ts.stream(model, plan, rows=rows) for rows in (8, 3))
    expected = whole(model, plan, image)
    before = one.push(image[:, :, :17])["maps"][0]
    one.save(tmp_path / "state.safetensors")
    two.push(image[:, :, :5])
    two.load(tmp_path / "state.safetensors")
    assert two.seen == 17
    after = two.push(image[:, :, 17:])
    assert difference(torch.cat([before, after["maps"][0]], 2), expected["maps"][0]) < 1e-12
    assert difference(after["logits"], expected["logits"]) < 1e-12
    other = ts.stream(model, plan.with_tile("3xW"))
    other.push(image[:, :, :5])
    with pytest.raises(ts.TiledSEError, match="another network, plan or image size"):
        other.load(tmp_path / "state.safetensors")
    assert other.seen == 5
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "state.safetensors").read_bytes()[:200])
    with pytest.raises(ts.TiledSEError, match="no stream state"):
        other.load(tmp_path / "cut.safetensors")
    with pytest.raises(ts.TiledSEError, match="no stream state"):
        other.load(tmp_path / "none.safetensors")


def test_an_interrupted_push_is_not_taken_for_a_state(network, image, monkeypatch):
    model, plan = network
    stream = ts.stream(model, plan, rows=8)
    stream.push(image[:, :, :5])
    monkeypatch.setattr(stream._engine, "make", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stream.push(image[:, :, 5:9])
    with pytest.raises(ts.TiledSEError, match="interrupted"):
        stream.push(image[:, :, 9:])


PIXELS = np.random.default_rng(0).integers(0, 256, (53, 37, 3), np.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 16},
        {"rowsperstrip": 16, "compression": "zlib"},
        {"tile": (16, 16), "compression": "zlib"},
        {"byteorder": ">"},
    ],
)
def test_tiff_is_read_as_it_was_written(tmp_path, options):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb", **options)
    image = ImageRows(tmp_path / "a.tif", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    got = torch.cat(list(image.chunks(10)), 2)[0]
    assert torch.equal(got, (torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255 - 0.5) / 0.5)


@pytest.mark.parametrize("layout", ["hwc", "chw", "hw"])
def test_npy_is_read_as_it_was_written(tmp_path, layout):
    array = {"hwc": PIXELS, "chw": PIXELS.transpose(2, 0, 1).copy(), "hw": PIXELS[:, :, 0].copy()}[layout]
    np.save(tmp_path / "a.npy", array)
    got = torch.cat(list(ImageRows(tmp_path / "a.npy").chunks(7)), 2)[0]
    expected = PIXELS[:, :, :1] if layout == "hw" else PIXELS
    assert torch.equal(got, torch.from_numpy(expected.copy()).permute(2, 0, 1).float() / 255)


def test_broken_images_are_told(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-500])
    with pytest.raises(ts.TiledSEError, match="cut off"):
        list(ImageRows(tmp_path / "cut.npy").chunks(8))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ts.TiledSEError, match="cannot read image"):
        ImageRows(tmp_path / "text.png")
    with pytest.raises(ts.TiledSEError, match="no image"):
        ImageRows(tmp_path / "none.tif")
    np.save(tmp_path / "b.npy", np.zeros((2, 2, 2, 2)))
    with pytest.raises(ts.TiledSEError, match="expected numbers of"):
        ImageRows(tmp_path / "b.npy")


def test_output_is_written_whole_or_not_at_all(tmp_path):
    rows = torch.arange(240.0).view(2, 3, 8, 5)
    write_rows(tmp_path / "out.npy", rows.shape, 2, iter(rows.split(3, 2)))
    assert np.array_equal(np.load(tmp_path / "out.npy"), rows.numpy())
    with pytest.raises(ts.TiledSEError, match="6 rows of output came, expected 8"):
        write_rows(tmp_path / "short.npy", rows.shape, 2, iter(rows[:, :, :6].split(3, 2)))
    assert [file.name for file in tmp_path.iterdir()] == ["out.npy"]


NET = "timm:lcnet_050"


def test_stream_verb(tmp_path, capsys):
    np.save(tmp_path / "image.npy", PIXELS)
    out, plot = tmp_path / "out.npy", tmp_path / "held.png"
    command = ["stream", NET, str(tmp_path / "image.npy"), "--tile", "3xW", "--input", "3x64x64", "--json"]
    assert main([*command, "-o", str(out), "--plot", str(plot), "--rows", "16"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["input"] == [3, 53, 37]
    assert result["max_rel_error"] < 1e-5
    assert result["gate_buffer"] == result["cost_buffer_row_order"] > 0
    assert sum(item["elements"] for item in result["held"] if item["kind"] == "gate") == result["gate_buffer"]
    assert result["whole"] == {}
    assert np.load(out).shape == (1, 1000)
    assert plot.stat().st_size > 1000
    assert main([*command, "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["stream", NET, "--tile", "3xW", "--input", "3x64x64", "--alone"]) == 0
    text = capsys.readouterr().out
    assert "gates (wait for their tile)" in text
    assert "largest difference" not in text


def test_simulate_verb(tmp_path, capsys):
    chip = tmp_path / "chip.toml"
    chip.write_text("multipliers = 512\n[cycles_per_row]\nconv_stem = 40\n", "utf-8")
    plot, trace = tmp_path / "time.svg", tmp_path / "trace.json"
    command = ["simulate", NET, "--tile", "1xW", "--input", "3x64x64", "--hardware", str(chip)]
    assert main([*command, "--json", "--plot", str(plot), "--trace", str(trace), "--fifos", "minimum"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"cycles", "stall_cycles", "buffer", "first_output_cycle"} <= set(result["se"])
    assert all(block["peak"] == block["buffer_row_order"] for block in result["blocks"])
    assert result["tse"]["buffer"] < result["se"]["buffer"]
    assert next(s for s in result["stages"] if s["name"] == "conv_stem")["cycles_per_row"] == 40
    events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    busy = sum(e["dur"] for e in events if e["ph"] == "X")
    assert busy == sum(stage["busy_cycles"] for stage in result["stages"])
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multiplier = 3", "unknown key 'multiplier'"),
        ("multipliers = 0", "multipliers to be a whole number from 1, got 0"),
        ("[cycles_per_row]\nconv_stem = 0", r"cycles_per_row\['conv_stem'\]"),
        ("fifo_rows = 3", "fifo_rows to be a table"),
        ("multipliers", "cannot read hardware file"),
    ],
)
def test_wrong_hardware_is_one_line(tmp_path, capsys, text, message):
    chip = tmp_path / "chip.toml"
    chip.write_text(text, "utf-8")
    code = main(["simulate", NET, "--tile", "1xW", "--input", "3x64x64", "--hardware", str(chip)])
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_a_tiff_whose_pieces_are_not_its_rows(tmp_path):
    """Its header says three channels, the pieces hold one: they are not taken for each other."""
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((40, 24, 3), np.uint8), byteorder="<", compression="zlib", rowsperstrip=7)
    data = bytearray(path.read_bytes())
    start = int.from_bytes(data[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == 284:  # PlanarConfiguration
            data[entry + 8 : entry + 12] = (16).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ts.TiledSEError, match=r"a\.tif: row 7 is \(24, 1\), expected \(24, 3\)"):
        list(ImageRows(path).chunks(16))
