"""The exact choice of one option for each block: every best trade of buffer against cost, by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choice:
    """One option for each block.

    Args:
        buffer: Sum of the options' buffers, in elements.
        cost: Sum of their costs.
        options: For each block, the number of its option.
    """

    buffer: int
    cost: float
    options: tuple[int, ...]


def best_choices(blocks: Sequence[Sequence[tuple[int, float]]]) -> list[Choice]:
    """All choices that no other choice beats in both buffer and cost.

    Costs of blocks add up, so what is beaten for the first blocks is beaten for all: only choices that are not are
    carried on to the next block. There are at most (largest buffer / common divisor of the buffers) of them.

    Args:
        blocks: For each block its options, (buffer in elements, cost).

    Returns:
        The choices, from the smallest buffer to the smallest cost; the cost falls strictly.

    Example:
        >>> for choice in best_choices([[(1, 3.0), (7, 0.0)], [(2, 5.0), (4, 4.0)]]):
        ...     print(choice.buffer, choice.cost, choice.options)
        3 8.0 (0, 0)
        5 7.0 (0, 1)
        9 5.0 (1, 0)
        11 4.0 (1, 1)
    """
    buffers, costs = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for options in blocks:
        own_buffers = np.array([buffer for buffer, _ in options], np.int64)
        own_costs = np.array([cost for _, cost in options], np.float64)
        all_buffers = (buffers[:, None] + own_buffers).ravel()
        all_costs = (costs[:, None] + own_costs).ravel()
        order = np.lexsort((all_costs, all_buffers))
        falling = all_costs[order]
        best_before = np.minimum.accumulate(np.concatenate([[np.inf], falling[:-1]]))
        kept = order[falling < best_before]
        steps.append((kept // len(options), kept % len(options)))
        buffers, costs = all_buffers[kept], all_costs[kept]
    choices = []
    for last in range(len(buffers)):
        options_back, at = [], last
        for parents, chosen in reversed(steps):
            options_back.append(int(chosen[at]))
            at = int(parents[at])
        choices.append(Choice(int(buffers[last]), float(costs[last]), tuple(reversed(options_back))))
    return choices
