"""Numbers that come from files and from the command line: of the right kind, finite, and within bounds."""

from __future__ import annotations

import re
from math import inf, isfinite
from typing import Any

# Larger than any count here, and exact in a double and in 64 bits.
MOST = 2**53


def whole(value: Any, what: str, least: int = 1, most: int = MOST) -> int:
    """A whole number out of JSON or TOML, as it is.

    Args:
        value: What stands there.
        what: What messages call it.
        least: The least that it may be.
        most: The most.

    Raises:
        ValueError: another kind of value, or beyond the bounds.

    Example:
        >>> whole(7, "rows")
        7
        >>> whole(True, "rows")
        Traceback (most recent call last):
        ValueError: expected rows to be a whole number from 1, got True
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        upto = f" to {most}" if isinstance(value, int) and value > most else ""
        raise ValueError(f"expected {what} to be a whole number from {least}{upto}, got {quoted(value)}")
    return value


def real(value: Any, what: str, least: float = -inf, most: float = inf) -> float:
    """A finite number out of JSON or TOML.

    Raises:
        ValueError: another kind of value, not finite, or beyond the bounds.

    Example:
        >>> real(1, "rate"), real(0.5, "rate", 0, 1)
        (1.0, 0.5)
        >>> real(float("nan"), "rate")
        Traceback (most recent call last):
        ValueError: expected rate to be a finite number, got nan
    """
    kind = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not kind or abs(value) > 1.7e308 or not isfinite(value) or not least <= value <= most:
        bounds = (
            ""
            if least == -inf and most == inf
            else f" from {least:g}" + (f" to {most:g}" if most < inf else "")
        )
        raise ValueError(f"expected {what} to be a finite number{bounds}, got {quoted(value)}")
    return float(value)


def text_of(value: Any, what: str) -> str:
    """A text out of JSON or TOML, without NUL.

    Raises:
        ValueError: another kind of value, or a NUL in it.
    """
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"expected {what} to be a text, got {quoted(value)}")
    return value


def parse_whole(text: str, what: str, least: int = 0, most: int = MOST) -> int:
    """A whole number out of a text: digits only.

    Raises:
        ValueError: no such number, or beyond the bounds.

    Example:
        >>> parse_whole(" 12 ", "label")
        12
        >>> parse_whole("1e3", "label")
        Traceback (most recent call last):
        ValueError: expected label to be a whole number from 0, got '1e3'
    """
    stripped = text.strip()
    if not re.fullmatch(
        r"[0-9]{1,19}", stripped
    ):  # Python refuses to read 4,301 digits, and takes long before
        raise ValueError(f"expected {what} to be a whole number from {least}, got {quoted(text)}")
    return whole(int(stripped), what, least, most)


def parse_real(text: str, what: str, least: float = -inf, most: float = inf) -> float:
    """A finite number out of a text.

    Raises:
        ValueError: no such number, not finite, or beyond the bounds.

    Example:
        >>> parse_real("0.5", "mean")
        0.5
    """
    try:
        number = float(text) if len(text) <= 64 else None
    except ValueError:
        number = None
    return real(quoted(text) if number is None else number, what, least, most)


def parse_reals(text: str, what: str, least: float = -inf) -> tuple[float, ...]:
    """``0.5,0.5,0.5`` as numbers.

    Raises:
        ValueError: see ``parse_real``.
    """
    return tuple(parse_real(part, what, least) for part in text.split(","))


def quoted(value: Any, limit: int = 60) -> str:
    """A value as messages show it: cut, since a number may have thousands of digits."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
