"""Targets as values: by name, from a file of one's own, and what is refused."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tiledse import TiledSEError, targets
from tiledse.targets import Measured, Target


def test_each_target_comes_from_a_file_of_its_name():
    assert targets.names()[0] == targets.DEFAULT
    for name in targets.names():
        target = targets.load(name)
        assert target.name == name
        assert target.about
        assert targets.load(target) is target
        assert all(m.source for m in target.measured)


def test_only_the_default_form_serves_free_sizes():
    assert [n for n in targets.names() if targets.load(n).plain] == ["onnxruntime", "openvino"]


def test_figures_of_hardware_md_stand_in_the_files():
    # Vela 5.2.0, MobileNetV3-L 512 x 1024 on U55: SE 46.75, two-step 42.90, 8xW 43.03 Mcycles.
    found = {(m.kind, m.se, m.value) for m in targets.load("ethos-u").measured}
    assert {("two-step", 46.75, 42.90), ("tiles", 46.75, 43.03)} <= found
    # tpu-mlir 1.30.2, four blocks at 448: SE 2,129,813 cycles, 7xW with ConvTranspose 895,400.
    assert ("tiles", 2129813, 895784) in {(m.kind, m.se, m.value) for m in targets.load("sophgo").measured}


def test_no_figure_stands_twice():
    for name in targets.names():
        known = [(m.kind, m.network, m.input, m.form, m.source) for m in targets.load(name).measured]
        assert len(known) == len(set(known)), name


@pytest.mark.parametrize(
    ("name", "judge", "column"),
    [("ethos-u", "vela", "cycles"), ("sophgo", "tpu_mlir", "cycles"), ("rockchip", "rknn", "moved_kib")],
)
def test_every_count_is_of_a_row_that_a_judge_gave(name, judge, column):
    path = Path(__file__).resolve().parents[2] / "results" / "judges" / f"{judge}.csv"
    with path.open(newline="") as file:
        rows = {float(row[column]) for row in csv.DictReader(file) if row[column]}
    counts = [m for m in targets.load(name).measured if m.unit in ("cycles", "KiB moved")]
    assert len(counts) > 8
    assert not [m for m in counts if not {m.se, m.value} <= rows]


def test_gain_is_per_cent_less_than_se():
    assert Measured("tiles", "n", (8, 8), "f", 200.0, 150.0, "cycles", "s").gain == 25.0
    assert Measured("tiles", "n", (8, 8), "f", 100.0, 104.0, "cycles", "s").gain == pytest.approx(-4)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "npu.toml"
    path.write_text(
        'about = "ours"\nwindow = 8\nspread = ["slices"]\nstatic = true\nbatch = 1\n[rejects]\nResize = "no"\n'
    )
    target = targets.load(path)
    assert (target.name, target.window, target.spread, target.batch) == ("npu", 8, ("slices",), 1)
    assert target.rejects == {"Resize": "no"}
    assert target == replace(target, name="npu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windw = 8", "unknown key 'windw'"),
        ("window = 0", "expected window to be a whole number from 1, got 0"),
        ("window = 1\nstatic = true", "a window of 1 averages nothing"),
        ("factor = 1\nstatic = true", "a factor of 1 averages nothing"),
        ("factor = '8'\nstatic = true", "factor"),
        ("factor = 8", "its forms are written for one size; say static = true"),
        (
            'spread = ["Tile"]\nstatic = true',
            "expected spread of Resize, ConvTranspose, Concat, slices, got 'Tile'",
        ),
        ('spread = "Resize"', "expected spread to be a list, got 'Resize'"),
        ("spread = []\nstatic = true", "spread and weighted need at least one way each"),
        ("static = 1", "expected static to be true or false, got 1"),
        ("window = 8", "say static = true"),
        ("resize = [1]\nstatic = true", "expected resize to be a whole number from 2, got 1"),
        ('rejects = ["Resize"]', "expected rejects to be a table"),
        ("[[measured]]\nkind = 'tiles'", "expected each entry of measured to have the keys"),
        ("window = ", "is no target"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "npu.toml"
    path.write_text(text)
    with pytest.raises(TiledSEError, match=re.escape(message)):
        targets.load(path)


def test_unknown_targets_are_told_which_there_are():
    with pytest.raises(TiledSEError, match="no target 'ethos'; expected one of onnxruntime, ethos-u"):
        targets.load("ethos")
    with pytest.raises(TiledSEError, match="cannot read target nowhere.toml: No such file"):
        targets.load("nowhere.toml")


def test_a_target_is_checked_when_it_is_made():
    with pytest.raises(TiledSEError, match="expected sides of both, rows, columns, got 'cols'"):
        Target("npu", sides="cols", static=True)
