"""Pairs: the combinations of parameters that `make test` runs; the rest are slow tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairs(*axes: Sequence[Any]) -> list[Any]:
    """All combinations, of which few are run by default: those that bring every two values of two axes together.

    Most faults need two things to meet, and few need three. The choice is greedy and the same each time.
    """
    combos = list(product(*(range(len(axis)) for axis in axes)))
    open_pairs = {pair for combo in combos for pair in _pairs(combo)}
    chosen = set()
    while open_pairs:
        best = max(combos, key=lambda combo: len(open_pairs & _pairs(combo)))
        chosen.add(best)
        open_pairs -= _pairs(best)
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, combo)),
            marks=() if combo in chosen else pytest.mark.slow,
        )
        for combo in combos
    ]


def _pairs(combo: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    return set(combinations(enumerate(combo), 2))
