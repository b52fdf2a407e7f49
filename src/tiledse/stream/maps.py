"""Row maps: which rows of its input a layer needs for a row of its output. Integers only; no torch.

Each map answers the same questions, for an int or an array of ints. ``need(b, h)``: how many rows of the input (of h
in all) must have come before the first b rows of the output can be made. ``low(b)``: the first row of the input that
row b of the output still reads. ``ready(avail)``: how many rows of the output ``avail`` rows of the input allow while
the end has not come. ``height(h)``: rows of the output of h rows of input.
"""

# ruff: noqa: D102  (the four questions are described above)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FOREVER = 1 << 62

Rows = Any  # an int, or an array of them


def clip(rows: Rows, low: int, high: int) -> Rows:
    """``rows`` kept within low and high; an int stays an int."""
    return np.clip(rows, low, high) if isinstance(rows, np.ndarray) else min(max(rows, low), high)


@dataclass(frozen=True)
class Window:
    """Convolution, pooling, padding and cropping: row i reads ``size`` rows from ``i * stride - top``.

    Negative ``top`` and ``bottom`` crop.

    Example:
        >>> conv = Window(3, 2, 1, 1)
        >>> conv.height(224), conv.need(1, 224), conv.low(5), conv.ready(10)
        (112, 2, 9, 5)
    """

    size: int = 1
    stride: int = 1
    top: int = 0
    bottom: int = 0
    ceil: bool = False

    def height(self, h: int) -> int:
        room = h + self.top + self.bottom - self.size
        rows = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        # A last window that would start in the padding below is left out, as torch does.
        return rows - 1 if self.ceil and (rows - 1) * self.stride >= h + self.top else rows

    def need(self, b: Rows, h: int) -> Rows:
        # Rows of padding above wait for the first row too: without it nothing is known to come.
        return clip((b - 1) * self.stride - self.top + self.size, min(1, h), h)

    def low(self, b: Rows) -> Rows:
        return clip(b * self.stride - self.top, 0, FOREVER)

    def ready(self, avail: int) -> int:
        return avail and max(0, (avail + min(self.bottom, 0) + self.top - self.size) // self.stride + 1)


SAME = Window()


@dataclass(frozen=True)
class Strips:
    """The squeeze of strips of k rows: row j waits for the rows down to ``ahead`` rows past its strip.

    Each row is read once: what a gate sees of the rows before is a state of the squeeze (sums). Where only rows above
    the strip are seen (``ahead`` of -k), the first strip waits for its own.

    Example:
        >>> slide = Strips(1, ahead=2)
        >>> slide.need(1, 9), slide.need(9, 9), slide.low(1), slide.ready(5)
        (3, 9, 3, 3)
    """

    rows: int
    ahead: int = 0

    def height(self, h: int) -> int:
        return -(-h // self.rows)

    def need(self, b: Rows, h: int) -> Rows:
        return clip(self.end(b), 0, h)

    def low(self, b: Rows) -> Rows:
        return self.end(b)

    def ready(self, avail: int) -> int:
        return (avail - self.ahead) // self.rows if avail >= self._first else 0

    @property
    def _first(self) -> int:
        return self.rows if self.ahead == -self.rows else self.rows + self.ahead

    def end(self, b: Rows) -> Rows:
        """The row after the last that strips up to b wait for, where the map has them all."""
        if isinstance(b, np.ndarray):
            return np.where(b > 0, np.maximum(b * self.rows + self.ahead, self._first), 0)
        return max(b * self.rows + self.ahead, self._first) if b > 0 else 0


@dataclass(frozen=True)
class Between:
    """The squeeze of one strip for the whole map (``upper``, ``middle``): one row, from rows first to stop."""

    first: int
    stop: int

    def height(self, h: int) -> int:
        return 1

    def need(self, b: Rows, h: int) -> Rows:
        return clip(
            np.minimum(b, 1) * self.stop if isinstance(b, np.ndarray) else min(b, 1) * self.stop, 0, h
        )

    def low(self, b: Rows) -> Rows:
        return (
            np.where(b < 1, self.first, FOREVER)
            if isinstance(b, np.ndarray)
            else (self.first, FOREVER)[b >= 1]
        )

    def ready(self, avail: int) -> int:
        return int(avail >= self.stop)


@dataclass(frozen=True)
class Repeat:
    """Each row comes ``rows`` times: gates over their strips, whose height is the map's, and nearest interpolation."""

    rows: int

    def height(self, h: int) -> int:
        return h * self.rows

    def need(self, b: Rows, h: int) -> Rows:
        return clip((b + self.rows - 1) // self.rows, 0, h)

    def low(self, b: Rows) -> Rows:
        return b // self.rows

    def ready(self, avail: int) -> int:
        return avail * self.rows


@dataclass(frozen=True)
class Spread:
    """Transposed convolution: row i adds to ``size`` rows of the output from ``i * stride - top`` on.

    Example:
        >>> up = Spread(4, 2, 1, 1)
        >>> up.height(10), up.need(1, 10), up.low(4), up.ready(3)
        (20, 1, 1, 5)
    """

    size: int
    stride: int
    top: int = 0
    bottom: int = 0

    def height(self, h: int) -> int:
        return (h - 1) * self.stride + self.size - self.top - self.bottom

    def need(self, b: Rows, h: int) -> Rows:
        return clip((b - 1 + self.top) // self.stride + 1, min(1, h), h)

    def low(self, b: Rows) -> Rows:
        return clip(-((self.size - 1 - b - self.top) // self.stride), 0, FOREVER)

    def ready(self, avail: int) -> int:
        return max(0, avail * self.stride - self.top)


@dataclass(frozen=True)
class Linear:
    """Linear interpolation to ``factor`` times the rows: row i lies at ``(i + 0.5) / factor - 0.5``.

    Args:
        factor: Rows for a row.
        corner: Row i lies at ``i / factor`` instead, as older ONNX files have it.

    Example:
        >>> double = Linear(2)
        >>> double.height(10), double.need(2, 10), double.low(3), double.ready(3)
        (20, 2, 1, 5)
    """

    factor: int
    corner: bool = False

    def above(self, b: Rows) -> Rows:
        """The upper of the two rows that row b lies between; -1 before the first."""
        return b // self.factor if self.corner else (2 * b + 1 - self.factor) // (2 * self.factor)

    def height(self, h: int) -> int:
        return h * self.factor

    def need(self, b: Rows, h: int) -> Rows:
        return clip(self.above(b - 1) + 2, 0, clip(b, 0, 1) * h)

    def low(self, b: Rows) -> Rows:
        return clip(self.above(b), 0, FOREVER)

    def ready(self, avail: int) -> int:
        half = self.factor if self.corner else (self.factor + 1) // 2
        return max(0, avail * self.factor - half)


@dataclass(frozen=True)
class First:
    """One row, or a value without rows, that every row of the output reads: a global gate, a pooled vector."""

    def need(self, b: Rows, h: int) -> Rows:
        return clip(b, 0, 1)

    def low(self, b: Rows) -> Rows:
        return b * 0

    def ready(self, avail: int) -> int:
        return FOREVER if avail else 0


@dataclass(frozen=True, eq=False)
class Table:
    """Interpolation: row i reads rows ``first[i]`` to ``last[i]``, both ends included, of a map of known height."""

    first: np.ndarray
    last: np.ndarray

    def height(self, h: int) -> int:
        return len(self.first)

    def need(self, b: Rows, h: int) -> Rows:
        if isinstance(b, np.ndarray):
            return np.where(b > 0, self.last[np.maximum(b, 1) - 1] + 1, 0)
        return int(self.last[b - 1]) + 1 if b else 0

    def low(self, b: Rows) -> Rows:
        if isinstance(b, np.ndarray):
            return np.where(b < len(self.first), self.first[np.minimum(b, len(self.first) - 1)], FOREVER)
        return int(self.first[b]) if b < len(self.first) else FOREVER

    def ready(self, avail: int) -> int:
        return int(np.searchsorted(self.last, avail, side="left"))


class _All:
    """Every row of the output needs all rows."""

    def need(self, b: Rows, h: int) -> Rows:
        return clip(b, 0, 1) * h

    def low(self, b: Rows) -> Rows:
        return b * 0

    def ready(self, avail: int) -> int:
        return 0


@dataclass(frozen=True)
class Total(_All):
    """A mean, sum or maximum over all rows: rows are absorbed as they come, and one row goes out at the end."""

    def height(self, h: int) -> int:
        return 1


@dataclass(frozen=True)
class Whole(_All):
    """A layer that is not local in rows: it waits for the whole map and holds it."""

    rows: int

    def height(self, h: int) -> int:
        return self.rows


RowMap = Window | Strips | Between | Repeat | Spread | Linear | First | Table | Total | Whole
