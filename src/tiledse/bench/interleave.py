"""Timings that can be compared: the cases take turns in one run, and ratios are taken within each turn.

On a machine with other work to do, times drift by half; ratios of calls that follow each other do not. With one thread
time is that of the calling thread (what it computed, with the page faults of its memory), so others' work counts less.
With several it is wall time, because what the other threads compute is nowhere in the calling thread's. Both are kept.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """What one case took, turn by turn.

    Attributes:
        cpu_s: Seconds of the calling thread.
        wall_s: Seconds on the clock.
        threads: Of torch.
    """

    cpu_s: tuple[float, ...]
    wall_s: tuple[float, ...]
    threads: int = 1

    def ratio(self, other: Timing, wall: bool | None = None) -> Ratio:
        """How many times as long as another case of the same run; by the clock where several threads ran, or asked."""
        wall = self.threads > 1 if wall is None else wall
        mine, theirs = (self.wall_s, other.wall_s) if wall else (self.cpu_s, other.cpu_s)
        return Ratio.of([a / b for a, b in zip(mine, theirs, strict=True)])


@dataclass(frozen=True)
class Ratio:
    """A median of ratios, and the middle half of them.

    Example:
        >>> print(Ratio.of([1.0, 2.0, 1.5, 1.2, 1.4]))
        1.40 (1.10-1.75)
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: list[float]) -> Ratio:
        """From one ratio a turn; at least two."""
        low, median, high = statistics.quantiles(ratios, n=4)
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def interleave(
    cases: dict[str, Callable[[], object]], repeats: int, prepare: Callable[[], object] | None = None
) -> dict[str, Timing]:
    """Time cases in turns: each is called once a turn, after one turn that does not count.

    Args:
        cases: What to call, by name.
        repeats: Turns.
        prepare: Called before each call, and not timed.

    Example:
        >>> timings = interleave({"one": lambda: sum(range(1000)), "two": lambda: sum(range(2000))}, repeats=5)
        >>> len(timings["one"].cpu_s)
        5
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    collects = gc.isenabled()
    gc.disable()
    try:
        for turn in range(repeats + 1):
            for name, call in cases.items():
                if prepare is not None:
                    prepare()
                cpu, wall = time.thread_time(), time.perf_counter()
                call()
                spent = time.thread_time() - cpu, time.perf_counter() - wall
                if turn:
                    times[name].append(spent)
    finally:
        if collects:
            gc.enable()
    threads = torch.get_num_threads()
    return {
        name: Timing(tuple(cpu for cpu, _ in spent), tuple(wall for _, wall in spent), threads)
        for name, spent in times.items()
    }
