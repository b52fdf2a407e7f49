"""Row maps far from the edges of the image, where nothing is clipped: what a step of fixed shapes reads."""

from __future__ import annotations

from fractions import Fraction

from ..maps import Linear, Repeat, RowMap, Spread, Strips, Window


def stretch(how: RowMap) -> Fraction | None:
    """Rows of the input for a row of the output; None where that is no fixed number.

    Example:
        >>> stretch(Window(3, 2, 1, 1)), stretch(Repeat(7))
        (Fraction(2, 1), Fraction(1, 7))
    """
    if isinstance(how, Window):
        return Fraction(how.stride)
    if isinstance(how, Strips):
        return Fraction(how.rows)
    if isinstance(how, Repeat):
        return Fraction(1, how.rows)
    if isinstance(how, Spread):
        return Fraction(1, how.stride)
    if isinstance(how, Linear):
        return Fraction(1, how.factor)
    return None


def reach(how: RowMap, b: int) -> int:
    """Rows of the input that must have come before the rows of the output before row b can be made.

    Example:
        >>> reach(Window(3, 1, 1, 1), 10), reach(Window(3, 1, 1, 1), -4)
        (11, -3)
    """
    if isinstance(how, Window):
        # Of rows that are cropped at the end it shows only after them that they are not.
        return (b - 1) * how.stride - how.top + how.size - min(how.bottom, 0)
    if isinstance(how, Strips):
        # The first strip has no rows above: where it sees no others it waits for its own, and so do all.
        return b * how.rows + (how.ahead if how.ahead > -how.rows else 0)
    if isinstance(how, Repeat):
        return -(-b // how.rows)
    if isinstance(how, Spread):
        return (b - 1 + how.top) // how.stride + 1 - min(how.bottom, 0)
    assert isinstance(how, Linear)
    return how.above(b - 1) + 2


def first(how: RowMap, a: int) -> int:
    """The first row of the input that row a of the output reads.

    Example:
        >>> first(Window(3, 2, 1, 1), 4), first(Linear(2), 4)
        (7, 1)
    """
    if isinstance(how, Window):
        return a * how.stride - how.top
    if isinstance(how, Strips):
        return a * how.rows
    if isinstance(how, Repeat):
        return a // how.rows
    if isinstance(how, Spread):
        return -((how.size - 1 - a - how.top) // how.stride)
    assert isinstance(how, Linear)
    return how.above(a)


def until(how: RowMap, b: int) -> int:
    """The row after the last that rows before b of the output read; what is cropped at the end is not."""
    crop = min(how.bottom, 0) if isinstance(how, (Window, Spread)) else 0
    return reach(how, b) + crop
