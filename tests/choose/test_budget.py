"""Budgets: shares of a pipeline's buffer against each plan counted as a whole, and choices that fit."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from tiledse.choose.budget import fitting
from tiledse.choose.exact import best_choices

NUMBERS = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9).map(float)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


def smallest_is_free(blocks):
    """The first option holds least and costs most, as the smallest tile does."""
    return [[(0, 20.0), *own] for own in blocks]


@given(NUMBERS, st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_of_sums_the_best_that_fits_is_found(blocks, budget):
    blocks = smallest_is_free(blocks)
    costs = [[c for _, c in own] for own in blocks]

    def holds(options):
        return sum(own[o][0] for own, o in zip(blocks, options, strict=True))

    found = fitting(best_choices(blocks), holds, costs, budget, 3)
    assert all(holds(options) <= budget for options in found)
    best = min(
        sum(c[o] for c, o in zip(costs, options, strict=True))
        for options in product(*(range(len(own)) for own in blocks))
        if holds(options) <= budget
    )
    assert sum(c[o] for c, o in zip(costs, found[0], strict=True)) == best


@given(NUMBERS, st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_where_sums_say_too_much_the_rest_is_used_up(blocks, budget):
    """As with one shortcut past all blocks: the largest counts, not the sum."""
    blocks = smallest_is_free(blocks)
    costs = [[c for _, c in own] for own in blocks]

    def holds(options):
        return max(own[o][0] for own, o in zip(blocks, options, strict=True))

    found = fitting(best_choices(blocks), holds, costs, budget, 3)
    assert all(holds(options) <= budget for options in found)
    best = sum(min(c for b, c in own if b <= budget) for own in blocks)
    assert min(sum(c[o] for c, o in zip(costs, options, strict=True)) for options in found) == best
