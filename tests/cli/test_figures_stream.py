"""Each figure that `tiledse stream` and `simulate` print, on cases whose values are known by other means."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.cli.known import small
from tests.cli.running import assert_refused, tiledse
from tests.reference import by_crops
from tiledse.networks.network import TorchNetwork

HEIGHT, WIDTH = 3000, 256
TALL = ("stream", "tests.cli.known:small", "--tile", "3xW", "--input", f"3x{HEIGHT}x{WIDTH}", "--rows", 8)
ROW = 4 * WIDTH  # bytes of one row of one channel
IMAGE, MAP = 3 * HEIGHT * ROW / 1e6, 16 * HEIGHT * ROW / 1e6  # MB: 9.2 and 49.2


def check_memory(streamed: float, whole: float, case: str) -> None:
    """MB. The whole image is there with the map and the map times its gates; a stream needs some rows of each.

    What is kept of its outputs for the comparison, 6 MB, is not the stream's.
    """
    assert IMAGE + 2 * MAP < whole < IMAGE + 4 * MAP, case
    assert streamed < 5 < 2 * HEIGHT * ROW / 1e6, case


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("form", ["text", pytest.param("json", marks=pytest.mark.slow)])
def test_memory_is_that_of_the_run_that_it_is_said_of(form):
    # In a process of its own: what an earlier test left free would be used again, and not be seen to grow.
    command = [sys.executable, "-m", "tiledse", *map(str, TALL), *(["--json"] if form == "json" else [])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if form == "json":
        done = json.loads(printed)
        check_memory(done["rss_delta_bytes"] / 1e6, done["full_rss_delta_bytes"] / 1e6, form)
    else:
        words = "resident memory grew by (\\d+) MB, with the whole image by (\\d+) MB"
        said = re.search(words, " ".join(printed.split()))
        assert said is not None
        check_memory(*map(float, said.groups()), form)


def test_what_layers_hold():
    done = json.loads(tiledse(*TALL, "--json", "--alone").out)
    assert done["full_rss_delta_bytes"] is None
    assert done["max_rel_error"] is None
    assert done["rss_delta_bytes"] < 5e6
    held = [(h["name"], h["kind"], h["rows"], h["elements"]) for h in done["held"]]
    # A 3x3 window holds 3 rows of what it reads, the gate the rows of a tile; descriptors and gates are 16 numbers.
    lines = {
        ("image", "rows", 3, 3 * 3 * WIDTH),
        ("se", "gate", 3, 3 * 16 * WIDTH),
        ("se", "rows", 3, 3 * 16 * WIDTH),
    }
    assert lines <= set(held)
    rest = [h for h in held if h not in lines]
    assert [h[1:] for h in rest] == [("rows", 1, 16), ("rows", 1, 16), ("rows", 1, 2 * WIDTH)]
    assert done["gate_buffer"] == done["cost_buffer_row_order"] == 3 * 16 * WIDTH
    text = tiledse(*TALL, "--alone").out
    for figure in ("12,288", "15,136", "27,424"):  # gates; lines and rows on their way; all
        assert figure in text
    one = json.loads(tiledse(*TALL[:-1], 1, "--json", "--alone").out)
    # Row by row, 4 bytes an element: no more than all buffers full at once, no less than the largest two, which are.
    assert 4 * 2 * 12288 <= one["peak_live_bytes"] <= 4 * 27424
    assert (
        done["peak_live_bytes"]
        <= 4 * WIDTH * (3 * (8 + 2) + 16 * (8 + 3) + 16 * (2 * 8 + 2) + 2 * 16) + 4 * 32 * 8
    )


def test_the_difference_is_that_of_what_was_written(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).random((60, 31, 3), np.float32)
    np.save(tmp_path / "image.npy", pixels)
    command = [
        "stream",
        "tests.cli.known:small",
        tmp_path / "image.npy",
        "--tile",
        "7xW",
        "--input",
        "3x32x32",
    ]
    done = json.loads(tiledse(*command, "--json", "-o", tmp_path / "out.npy").out)
    assert done["input"] == [3, 60, 31]
    model, x = small().eval(), torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model.tail(by_crops(model.se, model.stem(x), "7xW"))
    written = torch.from_numpy(np.load(tmp_path / "out.npy"))
    torch.testing.assert_close(written, expected, rtol=1e-5, atol=1e-6)
    assert done["max_rel_error"] < 1e-5

    # A network that gives a hundredth more is 1/101 of its own largest output away; nan is no number to print.
    plain = TorchNetwork.tiled

    def scaled(by):
        def tiled(*args):
            tse = plain(*args)
            tse.register_forward_hook(lambda module, inputs, output: output * by)
            return tse

        return tiled

    monkeypatch.setattr(TorchNetwork, "tiled", scaled(1.01))
    done = json.loads(tiledse(*command, "--json").out)
    assert done["max_rel_error"] == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert "largest difference from the whole image: 9.9e-03" in tiledse(*command).out
    monkeypatch.setattr(TorchNetwork, "tiled", scaled(float("nan")))
    assert_refused(tiledse(*command), "outputs that are not finite")


def test_a_file_of_fixed_size_streams_and_is_compared_at_that_size(tmp_path):
    network = ts.open("tests.cli.known:small", (3, 44, 24))
    ts.write(network, network.plan, tmp_path / "net.onnx")
    for rows in (44, 90):
        np.save(tmp_path / f"{rows}.npy", np.random.default_rng(0).random((rows, 24, 3), np.float32))
    command = ("stream", tmp_path / "net.onnx", "--tile", "7xW")
    done = json.loads(tiledse(*command, tmp_path / "44.npy", "--json").out)
    assert 0 < done["max_rel_error"] < 2e-6
    refused = tiledse(*command, tmp_path / "90.npy", "-o", tmp_path / "out.npy")
    assert_refused(refused, "net.onnx takes images of 3x44x24, and this one is 3x90x24", "--alone")
    assert not (tmp_path / "out.npy").exists()
    assert tiledse(*command, tmp_path / "90.npy", "-o", tmp_path / "out.npy", "--alone").code == 0
    model, x = small().eval(), torch.from_numpy(np.load(tmp_path / "90.npy")).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model.tail(by_crops(model.se, model.stem(x), "7xW"))
    torch.testing.assert_close(
        torch.from_numpy(np.load(tmp_path / "out.npy")), expected, rtol=1e-5, atol=1e-6
    )


CHIP = "multipliers = 100\nimage_cycles_per_row = 10\n[cycles_per_row]\n'0' = 7\n'1' = 1\n"


def test_a_pipeline_by_hand(tmp_path):
    """Rows of the image at 10, 20, 30, 40. The convolution takes 7 cycles a row: done at 27, 37, 47, 54.

    Tiles of 2 rows: squeezed at 38 and 55, excited at 39 and 56, rows out at 40, 41, 57, 58. The convolution waits 3
    cycles twice; the squeeze from 38 to 54, as does the excitation a cycle later; the gate from 27 to 39 and from 41
    to 56. With SE the map is there at 54: squeezed 55, excited 56, rows out at 57 to 60; the gate waits from 27 on.
    """
    (tmp_path / "chip.toml").write_text(CHIP, "utf-8")
    command = ["simulate", "tests.cli.known:line", "--tile", "2xW", "--input", "1x4x5"]
    command += ["--hardware", tmp_path / "chip.toml"]
    done = json.loads(tiledse(*command, "--json").out)
    se, tse = done["se"], done["tse"]
    assert (tse["first_output_cycle"], tse["cycles"]) == (40, 58)
    assert (se["first_output_cycle"], se["cycles"]) == (57, 60)
    assert se["frame_cycles"] == tse["frame_cycles"] == 40  # the image's
    assert se["period_cycles"] == tse["period_cycles"] == 40
    assert (se["buffer"], tse["buffer"]) == (4 * 5, 2 * 5)
    assert tse["stall_cycles"] == 6 + 16 + 16 + 12 + 15
    assert se["stall_cycles"] == 6 + 29
    assert done["blocks"] == [
        {"name": "1", "tile": "2xW", "buffer_row_order": 10, "se_peak": 20, "peak": 10, "fifo_rows": 2}
    ]
    busy = {stage["kind"]: stage["busy_cycles"] for stage in done["stages"]}
    assert busy == {"image": 40, "window": 28, "squeeze": 2, "excite": 2, "gate": 4}
    assert tse["fifo"] == sum(
        n * stage["fifo_rows"] for n, stage in zip((5, 5, 1, 1, 5), done["stages"], strict=True)
    )
    text = " ".join(tiledse(*command).out.split())
    for line in ("last output 60 58", "first output 57 40", "back to back 40 40", "stall cycles 35 65"):
        assert line in text
    for line in ("held by gates 20 10", "latency in frames 1.50 1.45", "; 40 cycles: what the slowest"):
        assert line in text


def test_simulate_says_what_cost_and_stream_say(tmp_path):
    options = ("timm:lcnet_050", "--input", "3x43x32", "--tile", "2xW")
    cost = json.loads(tiledse("cost", *options, "--json").out)
    run = json.loads(tiledse("simulate", *options, "--fifos", "minimum", "--json").out)
    held = json.loads(tiledse("stream", *options, "--alone", "--json").out)
    by_block = {b["name"]: b["buffer_row_order"] for b in cost["blocks"]}
    assert {b["name"]: b["peak"] for b in run["blocks"]} == by_block
    assert {b["name"]: b["se_peak"] for b in run["blocks"]} == {
        b["name"]: b["se_buffer"] for b in cost["blocks"]
    }
    assert {h["name"]: h["elements"] for h in held["held"] if h["kind"] == "gate"} == by_block
    assert run["tse"]["buffer"] == cost["tse"]["buffer_row_order"] == held["gate_buffer"]
    assert ts.Tile.parse("2xW").held(10) == 2
