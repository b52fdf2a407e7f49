"""JSON, TOML and safetensors headers are read with bounds; no figure is written that is no number."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest

import tiledse as ts
from tiledse.choose.cache import Evaluations
from tiledse.choose.evaluation import _evaluated
from tiledse.correction import Correction
from tiledse.documents import DEEPEST, read_json, read_safetensors_metadata, read_toml, write_json
from tiledse.numerals import parse_real, parse_whole, real, whole
from tiledse.stream.hardware import Hardware

SOURCE = Path(ts.__file__).parent
BLOCK = {
    "name": "se", "channels": 8, "reduced": 2, "height": 7, "width": 7, "dialect": "timm.SEModule",
    "excite_macs": 42, "tile": "HxW",
}  # fmt: skip
PLAN = {
    "format": "tiledse.plan/1",
    "input_size": [3, 28, 28],
    "blocks": [BLOCK],
    "near_misses": [],
    "network": None,
}


def test_only_one_place_reads_and_writes_json_and_toml():
    """Another reader would have no bounds, and another writer would write NaN."""
    using = re.compile(r"json\.(loads?|dumps?)\(|tomllib|\btomli\b")
    found = [p.name for p in SOURCE.rglob("*.py") if using.search(p.read_text("utf-8"))]
    assert found == ["documents.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nests deeper than 64"),
        ('{"a":' * 50_000, "nests deeper than 64"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nests deeper than 64"),
        ("[NaN]", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("[1e999]", "holds 1e999"),
        ("1" * 5000, "number of 5000 characters"),
        ("0." + "1" * 5000, "number of 5002 characters"),
        ('"\\ud800"', "half a character"),
        ("", "Expecting value"),
    ],
)
def test_json_beyond_bounds(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_json(text)
    assert len(str(caught.value)) < 200


def test_json_within_bounds():
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(read_json(deep)) == deep
    assert read_json('["\\ud83d\\ude00", 1e308, 9223372036854775807]') == ["😀", 1e308, 2**63 - 1]
    assert math.isnan(read_json("NaN", finite=False))
    assert read_json("[-Infinity, 1e999]", finite=False) == [-math.inf, math.inf]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "nests deeper than 64"),
        (".".join("a" * 3000) + " = 1", "nests deeper than 64"),
        ("a = nan", "holds nan"),
        ("a = [1, -inf]", "holds -inf"),
        ("a = 1e999", "holds inf"),
        ("a = " + "1" * 5000, "number of 5000 characters"),
    ],
)
def test_toml_beyond_bounds(text, message):
    with pytest.raises(ValueError, match=message):
        read_toml(text)


def test_long_digits_in_texts_and_comments_of_toml_are_no_numbers():
    digits = "1" * 50
    assert read_toml(f"a = \"{digits}\" # {digits}\nb = '{digits}'\n# {'_' * 60}") == {
        "a": digits,
        "b": digits,
    }


def test_the_writer_names_the_figure():
    with pytest.raises(ts.TiledSEError, match=r"the figure tse\.AP\[1\] is nan"):
        write_json({"se": 1.0, "tse": {"AP": [0.5, math.nan]}})
    with pytest.raises(ts.TiledSEError, match="the figure rate is inf"):
        write_json({"rate": math.inf})


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 2**60, 10**400])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="rows to be a whole number") as caught:
        whole(value, "rows")
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("value", [True, "1", None, math.nan, math.inf, 10**400])
def test_what_is_no_finite_number(value):
    with pytest.raises(ValueError, match="rate to be a finite number") as caught:
        real(value, "rate")
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1_0", "٣", "9" * 20, "9" * 5000])
def test_texts_that_are_no_whole_number(text):
    with pytest.raises(ValueError, match="label to be a whole number"):
        parse_whole(text, "label")


@pytest.mark.parametrize("text", ["", "nan", "inf", "1e999", "x", "1" * 5000])
def test_texts_that_are_no_finite_number(text):
    with pytest.raises(ValueError, match="mean to be a finite number"):
        parse_real(text, "mean")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": [{**BLOCK, "channels": 10**30}]}, "channels to be a whole number"),
        ({"blocks": [{**BLOCK, "channels": "8"}]}, "channels to be a whole number"),
        ({"blocks": [{**BLOCK, "excite_macs": 1.5}]}, "excite_macs to be a whole number"),
        ({"blocks": [{**BLOCK, "name": {"a": 1}}]}, "name to be a text"),
        ({"blocks": [{**BLOCK, "name": "a\0b"}]}, "name to be a text"),
        ({"blocks": [{**BLOCK, "tile": 7}]}, "no tile"),
        ({"blocks": [{**BLOCK, "tile": "1" * 5000 + "xW"}]}, "no tile"),
        ({"blocks": [[]]}, "not a whole plan"),
        ({"blocks": 7}, "not a whole plan"),
        ({"blocks": [{**BLOCK, "correction": []}]}, "not a whole plan"),
        ({"input_size": [3]}, "not a whole plan"),
        ({"near_misses": [{"name": 1, "reason": "x"}]}, "name to be a text"),
        ({"network": {"params": 1.5, "macs": 1}}, "params to be a whole number"),
        ({"network": {"params": 1, "macs": 1, "uncounted": "conv"}}, "uncounted to be a list"),
        ({"network": []}, "not a whole plan"),
    ],
)
def test_wrong_types_inside_plans(tmp_path, change, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**PLAN, **change}), "utf-8")
    with pytest.raises(ts.TiledSEError, match=message) as caught:
        ts.Plan.load(path)
    assert len(str(caught.value)) < 5400


@pytest.mark.parametrize("text", ["[" * 100_000, json.dumps(PLAN).replace("42", "NaN"), "1" * 5000])
def test_plans_beyond_bounds(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ts.TiledSEError, match="is no plan"):
        ts.Plan.load(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}" * 3,
        b"[" * 100_000,
        b'{"__metadata__": 7}',
        b'{"__metadata__": {"tiledse.plan": 7}}',
        b"\xff\xfe",
    ],
)
def test_damaged_safetensors_headers(tmp_path, header):
    path = tmp_path / "plan.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ts.TiledSEError, match="is no plan"):
        ts.Plan.load(path)


def test_a_safetensors_header_longer_than_its_file_is_not_read(tmp_path):
    path = tmp_path / "plan.safetensors"
    path.write_bytes(struct.pack("<Q", 90_000_000) + b"{}")
    with pytest.raises(ValueError, match="cut off"):
        read_safetensors_metadata(path)


@pytest.mark.parametrize(
    "data",
    [
        {"divergence": "0.5", "n": 3},
        {"divergence": 0.5, "n": 0},
        {"divergence": 0.5},
        {"divergence": 0.5, "n": 3, "score": [], "drop": 1.0, "drop_ci95": [0.0, 1.0]},
        {"divergence": 0.5, "n": 3, "score": {"AP": "x"}, "drop": 1.0, "drop_ci95": [0.0, 1.0]},
        {"divergence": 0.5, "n": 3, "score": {"AP": 1.0}, "drop": 1.0, "drop_ci95": 7},
    ],
)
def test_a_damaged_evaluation_is_measured_again(data):
    assert _evaluated(data, scored=True) is None


def test_what_was_kept_comes_back(tmp_path):
    kept = Evaluations(tmp_path)
    data = {
        "divergence": 0.5,
        "n": 3,
        "score": {"AP": 1.5, "AP_small": None},
        "drop": 1.0,
        "drop_ci95": [0.0, 2.0],
    }
    kept.write("a", data)
    read = _evaluated(kept.read("a"), scored=True)
    assert read is not None
    assert (read.divergence, read.n, read.drop, read.drop_ci95) == (0.5, 3, 1.0, (0.0, 2.0))
    assert math.isnan((read.score or {})["AP_small"])
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert kept.read("a") is None


@pytest.mark.parametrize("value", [1.5, True, 10**400, "7", 0])
def test_hardware_wants_whole_numbers(value):
    with pytest.raises(ts.TiledSEError, match="multipliers to be a whole number"):
        Hardware.from_dict({"multipliers": value})


def test_a_correction_of_other_types():
    good = Correction(*[np.zeros((8, 2), "f4")] * 3, 7, "").to_dict()
    for change in (
        {"height": 7.5},
        {"weights": 7},
        {"shape": [8]},
        {"shape": 8},
        {"own": "!"},
        {"shape": [10**9, 2]},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Correction.from_dict({**good, **change})
