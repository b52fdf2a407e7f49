"""Where the marks of a chart lie: numbers for the templates, which draw them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, some ``about`` of them.

    Example:
        >>> ticks(-0.4, 2.1)
        [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    span = high - low
    if not span > 0:
        return [low]
    step = 10 ** floor(log10(span / about))
    step = min((step * factor for factor in (1, 2, 5, 10)), key=lambda s: abs(span / s - about))
    first = ceil(low / step - 1e-9)
    return [round(step * k, 12) for k in range(first, floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within two numbers above 0.

    Example:
        >>> log_ticks(40_000, 300_000)
        [50000, 100000, 200000]
    """
    found = [f * 10**k for k in range(floor(log10(low)), ceil(log10(high)) + 1) for f in (1, 2, 5)]
    return [value for value in found if low <= value <= high] or [low]


def short(number: float) -> str:
    """A count with a letter, for axes.

    Example:
        >>> short(285_376), short(1_500_000), short(12)
        ('285k', '1.5M', '12')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            value = number / size
            return f"{value:.3g}{letter}"
    return f"{number:g}"


class Scale:
    """A straight, or logarithmic, way from numbers to places.

    Args:
        low: The number at ``start``.
        high: The number at ``end``.
        start: Place of the low end.
        end: Place of the high end.
        log: Whether equal ratios are equally far apart.
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.log = log
        low, high = (log10(low), log10(high)) if log else (low, high)
        self.low, self.high = low, high if high > low else low + 1
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        """The place of a number, to a tenth of a unit."""
        at = log10(value) if self.log else value
        return round(self.start + (self.end - self.start) * (at - self.low) / (self.high - self.low), 1)


def intervals(candidates: Sequence[dict[str, Any]], width: float = 640) -> dict[str, Any] | None:
    """Drops with their intervals, one line a candidate; None where there are none."""
    lines = [one for one in candidates if "drop" in one]
    if not lines:
        return None
    ends = [end for one in lines for end in one["drop_ci95"]]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.06 * (high - low) or 0.5
    x = Scale(low - room, high + room, 150, width - 16)
    return {
        "width": width,
        "height": 34 * len(lines) + 44,
        "zero": x(0),
        "ticks": [(x(t), f"{t:g}") for t in ticks(low - room, high + room)],
        "lines": [
            {"name": one["name"], "y": 20 + 34 * i, "low": x(one["drop_ci95"][0]), "high": x(one["drop_ci95"][1]),
             "at": x(one["drop"]), "drop": one["drop"]}
            for i, one in enumerate(lines)
        ],
    }  # fmt: skip


def front(search: dict[str, Any], width: float = 640, height: float = 340) -> dict[str, Any]:
    """The points of a search: buffer against drop, or against divergence where there are no labels."""
    labelled = bool(search["metric"])
    chosen = search["chosen"]
    points = [
        {
            "buffer": point["buffer"],
            "level": (point["drop"] or 0.0) if labelled else point["divergence"],
            "interval": point["drop_ci95"],
            "kind": point["kind"],
            "tiles": point["tiles"][0]
            if len(set(point["tiles"])) == 1
            else f"{len(set(point['tiles']))} kinds of tile",
            "calibrated": point["calibrated"],
            "chosen": (point["tiles"], point["calibrated"], point["kind"])
            == (chosen["tiles"], chosen["calibrated"], chosen["kind"]),
        }
        for point in search["points"]
    ]
    xs = [max(point["buffer"], 1) for point in points]
    ys = [point["level"] for point in points]
    room = 0.08 * (max(ys) - min(ys)) or 0.5
    x = Scale(min(xs) / 1.15, max(xs) * 1.15, 64, width - 20, log=True)
    y = Scale(min(0.0, *ys) - room, max(ys) + room, height - 48, 16)
    for point in points:
        point["x"], point["y"] = x(max(point["buffer"], 1)), y(point["level"])
    line = [p for p in points if p["kind"] == "front"]
    return {
        "width": width,
        "height": height,
        "points": points,
        "line": " ".join(f"{p['x']},{p['y']}" for p in line),
        "x_ticks": [(x(t), short(t)) for t in log_ticks(min(xs) / 1.15, max(xs) * 1.15)],
        "y_ticks": [(y(t), f"{t:g}") for t in ticks(min(0.0, *ys) - room, max(ys) + room)],
        "zero": y(0),
        "labelled": labelled,
        "metric": search["metric"],
        "n": search["n"],
        "of": "all FIFOs of the pipeline" if search.get("buffer_of") == "pipeline" else "the gates",
    }
