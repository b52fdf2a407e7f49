"""The geometry of tiles: which rows a gate sees, how many, with which weights, and what waits for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiledse as ts
from tests.reference import rows_seen


@st.composite
def sliding_tiles(draw):
    tall = draw(st.integers(1, 9))
    above = draw(st.one_of(st.none(), st.integers(0, 14)))
    lowest = 1 if above == 0 else -tall
    ahead = draw(st.integers(lowest, 14))
    if above == 0 and ahead == 0:
        above = 1
    return ts.Tile(tall, None, "running" if above is None else "window", ahead, above)


@settings(max_examples=200, deadline=None)
@given(tile=sliding_tiles(), height=st.integers(1, 20))
def test_rows_seen_are_those_of_a_loop(tile, height):
    squeeze = str(tile).partition(":")[2]
    # A map whose rows hold their own numbers says which rows were taken.
    numbers = np.arange(height, dtype=float).reshape(1, height, 1)
    tall, _ = tile.size(height, 1)
    held = []
    for strip, (first, stop) in enumerate(tile.bounds(height)):
        top = strip * tall
        rows = [*rows_seen(numbers, top, tile.height, squeeze).ravel().astype(int)]
        assert rows == [*range(first, stop)]
        share = [1 / len(rows) if row in rows else 0 for row in range(height)]
        np.testing.assert_allclose(tile.weights(height)[strip], share)
        assert tile.elements(height, 3)[strip, 0] == 3 * len(rows)
        held.append(rows[-1] + 1 - top)
    # The device holds the rows from the strip's first to the last that its gate needs.
    assert tile.held(height) == max(held)
    if tile.ahead >= 0:
        assert tile.held(height) == min(tile.height + tile.ahead, height)
        assert tile.buffer(5, height, 3) == tile.buffer_row_order(5, height, 3) == 15 * tile.held(height)


def test_what_waits_for_a_gate_of_known_tiles():
    """Seven rows of buffer in four forms; and rows above only, where nothing waits but the first strip."""
    for text in ("7xW", "7xW:running", "1xW:running+6", "2xW:running+5", "1xW:window-6+6"):
        tile = ts.Tile.parse(text)
        assert tile.buffer(16, 56, 56) == tile.buffer_row_order(16, 56, 56) == 7 * 56 * 16, text
    above = ts.Tile.parse("1xW:running-1")
    assert (above.buffer(16, 56, 56), above.buffer_row_order(16, 56, 56)) == (0, 56 * 16)
    half = ts.Tile.parse("2xW:running-1")
    assert (half.buffer(16, 56, 56), half.buffer_row_order(16, 56, 56)) == (56 * 16, 56 * 16)
    sums = [ts.Tile.parse(t).row_sums(56) for t in ("7xW", "7xW:running", "1xW:running+6", "1xW:window-6+6")]
    assert sums == [0, 1, 1, 13]


@pytest.mark.parametrize(
    ("text", "height", "gates"),
    [
        ("1xW:running+6", 56, 56),
        ("2xW:running+5", 56, 28),
        ("2xW:running+5", 7, 1),  # the first strip sees all, and so do the others: one gate
        ("1xW:running+6", 8, 8),
        ("1xW:window-6+6", 7, 1),
        ("1xW:window-5+6", 7, 7),  # the last row does not see the first
        ("7xW:running-1", 6, 1),
        ("7xW:running-1", 7, 1),  # one gate, of six rows
    ],
)
def test_how_many_gates(text, height, gates):
    assert ts.Tile.parse(text).grid(height, 9) == (gates, 1)


@given(tile=sliding_tiles())
def test_notation_of_sliding_tiles_is_printed_back(tile):
    assert ts.Tile.parse(str(tile)) == tile
    assert eval(repr(tile), {"Tile": ts.Tile}) == tile


def test_running_without_look_ahead_is_written_without():
    assert str(ts.Tile.parse("7xW:running+0")) == "7xW:running"
    assert ts.Tile.parse("7xW:running+0") == ts.Tile.parse("7xW:running")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Hx7:running+6", r"':running' goes with strips of rows only; write kxW:running\+6"),
        ("7x7:window-6+6", r"':window' goes with strips of rows only; write kxW:window-6\+6"),
        ("HxW:running+6", "strips of rows only"),
        ("1xW:window", r"':window' needs the rows above and below.*1xW:window-6\+6"),
        ("1xW:window-0+0", "a window without rows about the strip is the strip; write 1xW"),
        ("2xW:window-0-1", "a negative look-ahead needs rows above the strip"),
        ("2xW:running-3", "expected a look-ahead of at least -2"),
        ("7xW:upper+3", "no tile"),
        ("7xW+3", "no tile"),
        ("7xW:window+6-6", "no tile"),
        ("1xW:running+" + "9" * 5000, "no tile"),
    ],
)
def test_wrong_use(text, message):
    with pytest.raises(ts.TiledSEError, match=message):
        ts.Tile.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, None, "upper", 3), r"look-ahead and rows above go with ':running' and ':window'"),
        ((7, None, "tiles", 0, 3), "look-ahead and rows above go with"),
        ((1, None, "running", 6, 2), "':running' sees all rows above"),
        ((1, None, "window", 6, -2), "rows above of 0 or more, got -2"),
        ((1, None, "running", 1.5), "whole numbers of rows"),
        ((1, None, "running", True), "whole numbers of rows"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ts.TiledSEError, match=message):
        ts.Tile(*arguments)
