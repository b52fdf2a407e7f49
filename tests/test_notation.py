"""Tiles as text on sound, images and volumes: they print back, cut the first axis, and refuse other maps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiledse as ts
from tests.test_tile_geometry import sliding_tiles

SOUND = ts.SEBlock("se", 8, 2, 100, 1, "traced", sides=(100,))
IMAGE = ts.SEBlock("se", 8, 2, 10, 6, "traced")
VOLUME = ts.SEBlock("se", 8, 2, 10, 12, "traced", sides=(10, 3, 4))


def plan(block, tile):
    return ts.Plan((block,), (ts.Tile.parse("HxW"),), (3, *block.sides)).with_tile(tile)


@settings(max_examples=60, deadline=None)
@given(tile=sliding_tiles(), axes=st.integers(1, 3), height=st.integers(1, 20))
def test_text_prints_back_and_cuts_as_rows_do(tile, axes, height):
    here = tile.on(axes)
    again = ts.Tile.parse(str(here))
    assert (str(again), again.axes, again) == (str(here), axes, tile)
    assert again.bounds(height).tolist() == tile.bounds(height).tolist()


@pytest.mark.parametrize(
    "text", ["T", "8xT", "8xT:running", "1xT:running+7", "1xT:window-6+6", "8xT:upper", "DxHxW", "4xHxW",
             "1xHxW:running", "2xHxW:window-1+3", "DxHxW:two-step", "7xW", "Hx7", "7x7", "HxW"],
)  # fmt: skip
def test_every_form_prints_back(text):
    assert str(ts.Tile.parse(text)) == text


@pytest.mark.parametrize("text", ["8xTxF", "TxT", "8x", "4xHx7", "xT", "TxHxW", "0008", "-1xT", "HxT"])
def test_what_is_no_tile_says_the_forms(text):
    with pytest.raises(ts.TiledSEError, match=r"of sound \(C, T\) kxT, of volumes and video .* kxHxW"):
        ts.Tile.parse(text)


@pytest.mark.parametrize(
    ("block", "tile", "message"),
    [
        (SOUND, "7xW", r"'se' has maps of \(C, T\), and 7xW is a tile of \(C, H, W\); write 7xT"),
        (SOUND, "1xW:running+6", "write 1xT:running"),
        (SOUND, "Hx7", "write 7xT"),
        (SOUND, "4xHxW", "write 4xT"),
        (IMAGE, "8xT", r"'se' has maps of \(C, H, W\), and 8xT is a tile of \(C, T\); write 8xW"),
        (IMAGE, "DxHxW", "write HxW"),
        (VOLUME, "7x7", r"'se' has maps of \(C, D, H, W\), and 7x7 .*; write 7xHxW"),
        (VOLUME, "1xT:running", "write 1xHxW:running"),
    ],
)
def test_a_tile_of_other_axes_says_the_form(block, tile, message):
    with pytest.raises(ts.TiledSEError, match=message):
        plan(block, tile)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("T:running", "write kxT:running, for example 7xT:running"),
        ("0xT", "expected sides of at least 1, got 0; write kxT"),
        ("DxHxW:window-1+1", "write kxHxW:window-1"),
        ("4xHxW:window-0+0", "a window without rows about the strip is the strip; write 4xHxW"),
        ("4xT:two-step", "write T:two-step"),
        ("2xT:running-3", "expected a look-ahead of at least -2"),
    ],
)
def test_a_tile_that_makes_no_sense_is_told_in_its_own_form(text, message):
    with pytest.raises(ts.TiledSEError, match=message):
        ts.Tile.parse(text)


@pytest.mark.parametrize(("block", "whole"), [(SOUND, "T"), (IMAGE, "HxW"), (VOLUME, "DxHxW")])
def test_plain_se_is_written_in_the_form_of_the_map(block, whole):
    made = plan(block, "HxW")
    assert str(made.tiles[0]) == whole
    assert made == plan(block, whole)


@pytest.mark.parametrize(("block", "tile"), [(SOUND, "8xT:running+2"), (VOLUME, "4xHxW"), (IMAGE, "7xW")])
def test_a_plan_keeps_the_sides_of_its_maps(block, tile, tmp_path):
    made = plan(block, tile)
    made.save(tmp_path / "plan.json")
    again = ts.Plan.load(tmp_path / "plan.json")
    assert again == made
    assert (again.blocks[0].sides, str(again.tiles[0])) == (block.sides, tile)
    assert ("sides" in made.dumps()) == (block.axes != 2)  # plans of images are what they were


def test_costs_are_those_of_rows():
    """Buffers by hand: 8 channels, 4 frames of 12 elements; a sum a channel for what runs."""
    for block, tile, buffer in (
        (SOUND, "8xT:running", 64),
        (VOLUME, "4xHxW", 8 * 4 * 12),
        (VOLUME, "1xHxW:running+1", 192),
    ):
        found = ts.cost(plan(block, tile))
        assert (found.tse.buffer, found.tse.buffer_row_order) == (buffer, buffer)
        assert found.tse.running_sums == (8 if "running" in tile else 0)
        assert found.to_dict()["blocks"][0]["sides"] == list(block.sides)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sides": [99]}, "has no sides"), ({"sides": [10, 10, 1, 1]}, "has no sides"), ({"sides": "100"}, "sides"),
     ({"tile": "7xW"}, "write 7xT")],
)  # fmt: skip
def test_plans_of_strangers(change, message):
    data = plan(SOUND, "8xT").to_dict()
    data["blocks"][0].update(change)
    with pytest.raises(ts.TiledSEError, match=message):
        ts.Plan.from_dict(data)


def test_what_takes_images_refuses_other_networks_by_what_they_take():
    with pytest.raises(
        ts.TiledSEError, match=r"this takes images \(C, H, W\), but the network's input is 3x100, \(C, T\)"
    ):
        plan(SOUND, "8xT").image_size  # noqa: B018
