"""What the operator is to reach, and whether it does: over maps of 10 MB and up, one thread, float32."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .operator import Comparison
from .whole_networks import NetworkComparison

_LARGE_BYTES = 10_000_000


@dataclass(frozen=True)
class Verdict:
    """One target.

    Attributes:
        target: In words.
        limit: The figure to reach.
        median: Of the maps that it is about.
        worst: Of them.
        where: The worst one.
        reached: Whether the median does it.
        all_reached: Whether the worst does.
    """

    target: str
    limit: float
    median: float
    worst: float
    where: str
    reached: bool
    all_reached: bool

    def __str__(self) -> str:
        word = "pass  " if self.all_reached else "median" if self.reached else "MISSED"
        # As many digits as it takes to see that a limit is missed.
        digits = 2 if self.reached or round(self.median, 2) != round(self.limit, 2) else 4
        return (
            f"{word}  {self.target}: {self.median:.{digits}f}, worst {self.worst:.{digits}f} ({self.where})"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "median": round(self.median, 3), "worst": round(self.worst, 3)}


def _verdict(target: str, limit: float, at_least: bool, figures: Sequence[tuple[float, str]]) -> Verdict:
    values = [value for value, _ in figures]
    worst, where = min(figures) if at_least else max(figures)
    median = statistics.median(values)

    def meets(value: float) -> bool:
        return value >= limit if at_least else value <= limit

    sign = "at least" if at_least else "at most"
    return Verdict(f"{target}, {sign} {limit:g}", limit, median, worst, where, meets(median), meets(worst))


def verdicts(comparisons: Sequence[Comparison], networks: Sequence[NetworkComparison] = ()) -> list[Verdict]:
    """Judge what was measured; a target about which nothing was measured is left out."""
    found: list[Verdict] = []

    def judge(
        target: str, limit: float, at_least: bool, figure: Callable[[Comparison], float],
        layout: str | None = None, tiles: tuple[str, ...] = ("7xW",), large: bool | None = True,
    ) -> None:  # fmt: skip
        figures = [
            (figure(c), f"{c.shape} {c.layout} {c.tile}")
            for c in comparisons
            if c.layout == (layout or c.layout) and c.tile in tiles
            and (large is None or large == (c.shape.map_bytes >= _LARGE_BYTES))
        ]  # fmt: skip
        if figures:
            found.append(_verdict(f"{target}{f', {layout}' if layout else ''}", limit, at_least, figures))

    def inference(a: str, b: str) -> Callable[[Comparison], float]:
        return lambda c: c.inference[a].ratio(c.inference[b]).median

    def training(a: str, b: str) -> Callable[[Comparison], float]:
        return lambda c: c.training[a].ratio(c.training[b]).median

    for layout, new, inplace, step in (("NCHW", 0.85, 0.65, 0.55), ("channels_last", 0.6, 0.45, 0.3)):
        judge("7xW inference, in times of timm's SE", new, False, inference("tse", "se"), layout)
        judge("7xW in place, in times of timm's SE", inplace, False, inference("tse in place", "se"), layout)
        judge("7xW training, in times of timm's SE", step, False, training("tse", "se"), layout)
    halves = [c for c in comparisons if c.half_inference]
    if halves:
        judge(
            "7xW inference in bfloat16, in times of timm's SE", 0.7, False,
            lambda c: c.half_inference["tse"].ratio(c.half_inference["se"]).median,
        )  # fmt: skip
        judge(
            "7xW training under autocast, in times of timm's SE", 0.8, False,
            lambda c: c.half_training["tse"].ratio(c.half_training["se"]).median,
        )  # fmt: skip
    judge("7xW inference, small maps, in times of timm's SE", 0.9, False, inference("tse", "se"), large=False)
    judge("7xW training, small maps, in times of timm's SE", 1.0, False, training("tse", "se"), large=False)
    judge(
        "7xW training, saved bytes by SE's", 1.0, False, lambda c: c.saved_bytes["tse"] / c.saved_bytes["se"]
    )
    judge("7xW training, peak bytes by SE's", 1.0, False, lambda c: c.peak_bytes["tse"] / c.peak_bytes["se"])
    every = ("7xW", "Hx7", "7x7")
    judge(
        "any map, inference, times as fast as the paper's code",
        1.0,
        True,
        inference("paper", "tse"),
        None,
        every,
        None,
    )
    judge(
        "any map, training, times as fast as the paper's code",
        1.0,
        True,
        training("paper", "tse"),
        None,
        every,
        None,
    )
    if networks:
        figures = [
            (
                n.timings["tse"].ratio(n.timings["se"]).median,
                f"{n.network} {n.shape[0]}x{n.shape[2]}x{n.shape[3]} {n.layout} {n.tile}",
            )
            for n in networks
        ]
        found.append(_verdict("whole networks, TSE in times of SE", 1.0, False, figures))
    return found
