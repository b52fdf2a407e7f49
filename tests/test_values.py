"""Tile and Plan: notation, sizes, files, wrong use."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiledse as ts

NOTATION = ("HxW", "7xW", "Hx7", "7x7", "1x1", "7x9", "7xW:upper", "7xW:middle", "7xW:running")


@pytest.mark.parametrize("text", NOTATION)
def test_notation_is_printed_back(text):
    assert str(ts.Tile.parse(text)) == text
    assert ts.Tile.parse(ts.Tile.parse(text)) == ts.Tile.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0xW", "sides of at least 1, got 0"),
        ("7x", "no tile: '7x'; expected HEIGHTxWIDTH"),
        ("x7", "no tile"),
        ("7", "no tile"),
        ("WxH", "no tile"),
        ("-1xW", "no tile"),
        (
            "7xW:left",
            "'upper', 'middle', 'running', 'window', 'previous' or 'two-step' after the colon, got 'left'",
        ),
        ("Hx7:running", "strips of rows only"),
        ("7x7:upper", "strips of rows only"),
        ("HxW:running", "strips of rows only"),
        (7, "no tile: 7"),
        ("", "no tile"),
    ],
)
def test_what_is_no_tile(text, message):
    with pytest.raises(ts.TiledSEError, match=message):
        ts.Tile.parse(text)


@given(
    height=st.integers(1, 100), width=st.integers(1, 100),
    tall=st.one_of(st.none(), st.integers(1, 120)), wide=st.one_of(st.none(), st.integers(1, 120)),
)  # fmt: skip
def test_tiles_cover_the_map_once(height, width, tall, wide):
    tile = ts.Tile(tall, wide)
    h, w = tile.size(height, width)
    rows, cols = tile.grid(height, width)
    assert len({(i // h, j // w) for i in range(height) for j in range(width)}) == rows * cols
    assert tile.buffer(3, height, width) == 3 * h * w
    assert tile.buffer(1, height, width) <= tile.buffer_row_order(1, height, width) <= height * width


def plan_of(count=4):
    blocks = tuple(
        ts.SEBlock(f"s{i // 2 + 1}.b{i % 2}.se", 8, 2, 14, 14, "timm.SEModule") for i in range(count)
    )
    return ts.Plan(blocks, (ts.Tile.parse("HxW"),) * count, (3, 56, 56), (ts.NearMiss("head", "a head"),))


def test_choosing_tiles():
    plan = plan_of()
    assert [str(t) for t in plan.with_tile("7xW", "s2.*").tiles] == ["HxW", "HxW", "7xW", "7xW"]
    assert [str(t) for t in plan.first(3, "1xW").tiles] == ["1xW", "1xW", "1xW", "HxW"]
    assert plan.stages == {"s1": ("s1.b0.se", "s1.b1.se"), "s2": ("s2.b0.se", "s2.b1.se")}
    assert [str(t) for t in plan.with_tile("7xW", "s2[./]*").tiles] == ["HxW", "HxW", "7xW", "7xW"]
    names = [f"/blocks/blocks.{i // 2 + 1}/blocks.{i // 2 + 1}.{i % 2}/se/ReduceMean" for i in range(4)]
    exported = replace(
        plan, blocks=tuple(replace(b, name=n) for b, n in zip(plan.blocks, names, strict=True))
    )
    assert exported.stages == {"/blocks/blocks.1": tuple(names[:2]), "/blocks/blocks.2": tuple(names[2:])}
    assert [str(t) for t in exported.with_tile("7xW", "/blocks/blocks.2[./]*").tiles] == ["HxW"] * 2 + [
        "7xW"
    ] * 2
    assert plan.tiles == plan_of().tiles, "a plan is a value: choosing tiles makes another"


def test_a_glob_that_matches_nothing():
    with pytest.raises(ts.TiledSEError, match=r"no block matches 's9.\*'; the 4 blocks are: s1.b0.se"):
        plan_of().with_tile("7xW", "s9.*")


@pytest.mark.parametrize("count", [0, 5, -1])
def test_first_beyond_the_blocks(count):
    with pytest.raises(ts.TiledSEError, match="expected 1 to 4"):
        plan_of().first(count, "7xW")


def test_plan_on_disk(tmp_path):
    plan = plan_of().with_tile("7xW:running", "s1.*")
    plan.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["format"] == "tiledse.plan/1"
    loaded = ts.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.near_misses == plan.near_misses
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no plan"),
        ('{"format": "tiledse.plan/1", "blocks"', "is no plan"),
        ('{"format": "tiledse.plan/9"}', "expected a plan of format 'tiledse.plan/1', got 'tiledse.plan/9'"),
        ("[1, 2]", "got 'list'"),
        ('{"format": "tiledse.plan/1"}', "no key 'blocks'"),
        ('{"format": "tiledse.plan/1", "blocks": 3}', "not a whole plan"),
        ('{"format": "tiledse.plan/1", "blocks": [], "input_size": [3, 0, 4]}', "whole number from 1, got 0"),
        ('{"format": "tiledse.plan/1", "blocks": [], "input_size": [3]}', "not a whole plan"),
    ],
)
def test_what_is_no_plan(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ts.TiledSEError, match=message):
        ts.Plan.load(path)


def test_no_file(tmp_path):
    with pytest.raises(ts.TiledSEError, match="cannot read plan .* No such file"):
        ts.Plan.load(tmp_path / "plan.json")


def test_not_as_many_tiles_as_blocks():
    with pytest.raises(ts.TiledSEError, match="4 blocks and 1 tiles"):
        ts.Plan(plan_of().blocks, (ts.Tile.parse("HxW"),), (3, 56, 56))
