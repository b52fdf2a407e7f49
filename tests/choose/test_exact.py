"""The exact choice, against all choices written out and against scipy's integer programme."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from tiledse.choose.exact import best_choices

OPTIONS = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20).map(float)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


@given(OPTIONS)
def test_front_is_that_of_all_choices(blocks):
    everything = [(sum(b for b, _ in c), sum(cost for _, cost in c)) for c in itertools.product(*blocks)]
    front = sorted(
        {p for p in everything if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in everything)}
    )
    found = best_choices(blocks)
    assert [(c.buffer, c.cost) for c in found] == front
    for choice in found:
        taken = [block[o] for block, o in zip(blocks, choice.options, strict=True)]
        assert (sum(b for b, _ in taken), sum(c for _, c in taken)) == (choice.buffer, choice.cost)


@pytest.mark.parametrize("seed", range(3))
def test_least_cost_under_a_budget_is_that_of_an_integer_programme(seed):
    rng = np.random.default_rng(seed)
    buffers, costs = rng.integers(1, 5000, (9, 6)), rng.random((9, 6))
    found = best_choices([list(zip(b.tolist(), c.tolist())) for b, c in zip(buffers, costs)])
    for budget in (9000, 15000, 25000):
        one_each = np.kron(np.eye(9), np.ones(6))
        result = milp(
            costs.ravel(),
            integrality=np.ones(54),
            bounds=(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(buffers.ravel()[None], -np.inf, budget),
            ],
        )
        within = [c for c in found if c.buffer <= budget]
        assert (result.x is None) == (not within)
        if within:
            assert within[-1].cost == pytest.approx(result.fun)
