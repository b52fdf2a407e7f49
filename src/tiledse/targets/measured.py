"""Measured: one figure that a target's own tools gave for a network, with SE and in another form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..numerals import quoted, text_of, whole

KINDS = ("two-step", "tiles", "sliding")


@dataclass(frozen=True)
class Measured:
    """A figure of a target's own compiler or simulator; no hardware.

    Args:
        kind: What it is of: ``two-step`` SE, ``tiles`` or ``sliding`` tiles.
        network: The network.
        input: Rows and columns of its image.
        form: What was run, in words.
        se: The figure with plain SE.
        value: The figure in this form.
        unit: Of both, such as ``Mcycles``.
        source: The tool and its version.
    """

    kind: str
    network: str
    input: tuple[int, int]
    form: str
    se: float
    value: float
    unit: str
    source: str

    @property
    def gain(self) -> float:
        """Per cent less than SE; below 0 it is more.

        Example:
            >>> round(Measured("tiles", "net", (224, 224), "8xW", 46.75, 43.03, "Mcycles", "vela 5.2.0").gain, 1)
            8.0
        """
        return 100 * (1 - self.value / self.se)

    @property
    def pixels(self) -> int:
        """Of the image."""
        return self.input[0] * self.input[1]

    @classmethod
    def from_dict(cls, content: Any) -> Measured:
        """From TOML types.

        Raises:
            ValueError: a key that is missing or unknown, or a value of another kind.
        """
        known = [f.name for f in fields(cls)]
        if not isinstance(content, Mapping) or set(content) != set(known):
            raise ValueError(f"expected each entry of measured to have the keys {', '.join(known)}")
        for key in ("network", "form", "unit", "source"):
            text_of(content[key], f"measured.{key}")
        if content["kind"] not in KINDS:
            raise ValueError(f"expected measured.kind of {', '.join(KINDS)}, got {quoted(content['kind'])}")
        for key in ("se", "value"):
            number = content[key]
            if isinstance(number, bool) or not isinstance(number, (int, float)) or number <= 0:
                raise ValueError(f"expected measured.{key} to be a number above 0, got {quoted(number)}")
        sides = content["input"]
        if not isinstance(sides, list) or len(sides) != 2:
            raise ValueError(f"expected measured.input to be rows and columns, got {quoted(sides)}")
        rows, cols = (whole(side, "measured.input") for side in sides)
        return cls(**{**content, "input": (rows, cols)})


def beyond_two_step(two_step: Iterable[Measured], tiles: Iterable[Measured]) -> tuple[float, ...]:
    """Points of per cent that tiles gain beyond exact SE in two steps: least first, where both were measured.

    Example:
        >>> one = Measured("two-step", "net", (64, 64), "f", 100.0, 80.0, "cycles", "s")
        >>> beyond_two_step([one], [Measured("tiles", "net", (64, 64), "f", 100.0, 81.0, "cycles", "s")])
        (-1.0,)
    """
    tiled = [one for one in tiles if one.kind == "tiles"]
    both = [
        round(b.gain - a.gain, 6)
        for a in two_step
        for b in tiled
        if a.kind == "two-step" and (a.network, a.input, a.se, a.unit) == (b.network, b.input, b.se, b.unit)
    ]
    return tuple(sorted(both))
