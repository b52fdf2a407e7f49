"""Patterns of shards: bounded before they are expanded."""

from __future__ import annotations

import time

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

from tiledse.data.shards import _most_names, expand_shards
from tiledse.errors import TiledSEError

NUMBER = st.integers(-20, 20)
RANGE = st.builds("{{{}..{}}}".format, NUMBER, NUMBER)
WORDS = st.lists(st.text("ab", max_size=2), min_size=2, max_size=4).map(
    lambda words: "{" + ",".join(words) + "}"
)
PATTERN = st.lists(st.one_of(st.text("xy-", max_size=3), RANGE, WORDS), max_size=4).map("".join)


@pytest.mark.parametrize(
    "pattern",
    ["{0..99999999}.tar", "{0..999}{0..999}.tar", "{a,b}" * 30 + ".tar", "{0..1" + "0" * 5000 + "}.tar",
     "{x{0..9999},y}{0..99}.tar"],
)  # fmt: skip
def test_more_than_anyone_has_is_refused_at_once(pattern):
    started = time.process_time()
    with pytest.raises(TiledSEError, match="names more than 100,000 shards"):
        expand_shards(pattern)
    assert time.process_time() - started < 1


@given(PATTERN)
def test_the_bound_holds(pattern):
    assert len(list(braceexpand(pattern))) <= _most_names(pattern)


@given(RANGE)
def test_a_range_is_counted_exactly(pattern):
    assert len(list(braceexpand(pattern))) == _most_names(pattern)


def test_braces_without_an_end_are_refused():
    with pytest.raises(TiledSEError, match="no pattern of shards|no shard at"):
        expand_shards("val-{0..3.tar")
