"""Each figure that find, plan, cost and convert print, of a network whose figures are worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cli.running import tiledse

SIZE = ("--input", "3x23x13")
HW = 23 * 13
# Convolutions of 3x3 with their biases, a gate of two layers; see known.py.
STEM, GATE, TAIL = 3 * 16 * 9 + 16, (16 * 4 + 4) + (4 * 16 + 16), 16 * 2 * 9 + 2


def test_cost():
    done = json.loads(tiledse("cost", "tests.cli.known:small", *SIZE, "--tile", "3x5", "--json").out)
    macs = (STEM + TAIL) * HW
    tiles = 8 * 3
    assert done["se"] == {"params": STEM + GATE + TAIL, "macs": macs + GATE, "buffer": 16 * HW}
    assert done["tse"] == {
        "params": STEM + GATE + TAIL,
        "macs": macs + tiles * GATE,
        "buffer": 16 * 3 * 5,
        "buffer_row_order": 16 * 3 * 13,
        "running_sums": 0,
        "state": 0,
    }
    (block,) = done["blocks"]
    assert (block["tiles"], block["se_macs"], block["macs"]) == (tiles, GATE, tiles * GATE)
    assert (block["se_buffer"], block["buffer"], block["buffer_row_order"]) == (16 * HW, 240, 624)
    text = " ".join(tiledse("cost", "tests.cli.known:small", *SIZE, "--tile", "3x5").out.split())
    assert f"16x23x13 3x5 24 4,784 240 624 {GATE} {tiles * GATE:,}" in text
    assert f"the network 4,784 240 624 {macs + GATE:,} {macs + tiles * GATE:,}" in text
    assert "886 parameters with SE and with TSE; buffer 95.0 % less than SE" in text  # 1 - 240 / 4784
    running = json.loads(
        tiledse("cost", "tests.cli.known:small", *SIZE, "--tile", "2xW:running", "--json").out
    )
    assert running["tse"]["running_sums"] == 16
    assert running["tse"]["buffer_row_order"] == 16 * 2 * 13


def test_find_and_plan(tmp_path):
    found = json.loads(tiledse("find", "tests.cli.known:small", *SIZE, "--json").out)
    block = {"name": "se", "channels": 16, "reduced": 4, "height": 23, "width": 13, "tile": "HxW"}
    assert [{key: b[key] for key in block} for b in found["blocks"]] == [block]
    assert found["near_misses"] == []
    text = " ".join(tiledse("find", "tests.cli.known:small", *SIZE).out.split())
    assert "3x23x13: 1 SE blocks" in text
    assert "se 16 23 13 4" in text
    plan = tmp_path / "plan.json"
    made = tiledse("plan", "tests.cli.known:small", *SIZE, "--set", "s*=4xW", "-o", plan, "--json")
    assert json.loads(made.out) == json.loads(plan.read_text())
    assert json.loads(made.out)["blocks"][0]["tile"] == "4xW"


@pytest.mark.parametrize(("name", "largest"), [("constant", "3.0e+00"), ("small", None)])
def test_convert(name, largest, tmp_path):
    out = tmp_path / "tse.safetensors"
    done = tiledse("convert", f"tests.cli.known:{name}", *SIZE, "--tile", "3xW", "-o", out)
    assert done.code == 0, done.err
    assert "1 of 1 SE blocks have tiles now" in done.out
    if largest is not None:  # outputs are 3 and -2 on any image, with any gates
        assert f"by at most 0.0e+00 (outputs up to {largest})" in " ".join(done.out.split())


def test_a_sweep_shows_the_results_of_these_images_only(tmp_path):
    """A file may hold results of other images; a table of both would say nothing of which is which."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for data, count in (("one", 2), ("two", 3)):
        (tmp_path / data).mkdir()
        rows = ["file,label"]
        for number in range(count):
            pixels = rng.integers(0, 256, (80, 80, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / data / f"{number}.png")
            rows.append(f"{number}.png,{number}")
        (tmp_path / data / "labels.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "sweep.csv"
    for data, count in (("one", 2), ("two", 3)):
        command = (
            "sweep",
            "timm:lcnet_050",
            "--input",
            "3x64x64",
            "--data",
            tmp_path / data,
            "--tiles",
            "HxW",
        )
        done = tiledse(*command, "-o", out, "--json")
        assert done.code == 0, done.err
        rows = json.loads(done.out)["rows"]
        # SE with the tiles of SE: nothing is lost.
        assert [(r["data"], r["n"], r["drop"], r["lost"], r["gained"]) for r in rows] == [
            (data, str(count), "0.0", "0", "0")
        ]
    assert len(out.read_text().splitlines()) == 3
    twice = tiledse("sweep", "timm:lcnet_050", *command[1:], "-o", tmp_path / "other.csv")
    assert twice.code == 2
    assert "two of the networks are called 'timm:lcnet_050'" in twice.err
