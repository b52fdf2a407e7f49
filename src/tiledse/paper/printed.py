"""What the paper prints: its cells as data, and when a number says what a cell says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources
from math import floor

from ..documents import read_json
from ..errors import TiledSEError
from ..tile import Tile

Number = int | Fraction
_UNITS = {"": 1, "M": 10**6, "G": 10**9}
_METHOD = re.compile(r"TSE_(\w+?x\w+?)(?:-(upper|middle))?(?:\^aw)?(?: C(\d)x(\d) R(\d+))?")


@dataclass(frozen=True)
class Method:
    """A row's variant of a network.

    Args:
        tile: The tile; None for the network without any SE ("Vanilla").
        kernel: (along, across) the tiles, of the excitation's convolutions: the paper's C3x1.
        ratio: R, where the row names it: reduced width = width of the block's input / R.
    """

    tile: Tile | None
    kernel: tuple[int, int] | None = None
    ratio: int | None = None

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read a row's name.

        Example:
            >>> Method.parse("TSE_1xW C3x1 R4")
            Method(tile=Tile.parse('1xW'), kernel=(3, 1), ratio=4)
        """
        if text in ("Vanilla", "SE"):
            return cls(None if text == "Vanilla" else Tile.parse("HxW"))
        match = _METHOD.fullmatch(text)
        assert match is not None, text
        size, place, along, across, ratio = match.groups()
        tile = Tile.parse(size + (f":{place}" if place else ""))
        return cls(tile, (int(along), int(across)) if along else None, int(ratio) if ratio else None)


@dataclass(frozen=True)
class Printed:
    """One cell as the paper prints it.

    Args:
        table: "1" to "6", "B1", "B2" or "abstract".
        model: The network's name in the paper.
        method: The row's name.
        quantity: params, macs, buffer, resolution, or an accuracy (top1, mAP, mIoU).
        text: The number as printed; "N/A" or "-" where none is.
        unit: "M", "G" or "".
    """

    table: str
    model: str
    method: str
    quantity: str
    text: str
    unit: str = ""

    @property
    def value(self) -> Fraction | None:
        """The number in single units; None where none is printed."""
        return None if self.text in ("N/A", "-") else Fraction(self.text) * _UNITS[self.unit]

    def says(self, value: Number) -> str | None:
        """How ``value`` becomes the printed number: rounded, truncated, both, or None if it does not.

        Example:
            >>> cell = Printed("1", "RegNetY-800MF", "SE", "params", "6.2", "M")
            >>> cell.says(6_263_168), cell.says(6_150_000), cell.says(6_210_000), cell.says(6_310_000)
            ('truncated', 'rounded', 'rounded or truncated', None)
        """
        if self.value is None:
            return None
        decimals = len(self.text.partition(".")[2])
        scaled = Fraction(value, _UNITS[self.unit]) * 10**decimals
        printed = Fraction(self.text) * 10**decimals
        ways = [
            way
            for way, shown in (("rounded", floor(scaled + Fraction(1, 2))), ("truncated", floor(scaled)))
            if shown == printed
        ]
        return " or ".join(ways) or None


@cache
def printed_cells() -> tuple[Printed, ...]:
    """Every cell of the paper's tables and abstract, in the order of its tables."""
    text = resources.files("tiledse.paper").joinpath("tables.json").read_text("utf-8")
    data = read_json(text)
    cells = []
    for entry in (*data["complexity"], *data["accuracy"]):
        model, method = entry["model"], entry["method"]
        if entry["table"] == "abstract":  # one text there: "EfficientDet-D2 SE"
            model, _, method = model.partition(" ")
        cells.append(
            Printed(entry["table"], model, method, entry["quantity"], entry["printed"], entry.get("unit", ""))
        )
    order = list(dict.fromkeys(sorted((cell.table for cell in cells), key=_place)))
    return tuple(sorted(cells, key=lambda cell: order.index(cell.table)))


def choose_tables(tables: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the tables asked for, all where None.

    Raises:
        TiledSEError: the paper has no such table.

    Example:
        >>> choose_tables(["b1"])
        ('B1',)
    """
    known = tuple(dict.fromkeys(cell.table for cell in printed_cells()))
    if tables is None:
        return known
    names = {name.lower(): name for name in known}
    for table in tables:
        if table.lower() not in names:
            raise TiledSEError(f"no table '{table}'; the paper's are {', '.join(known)}")
    return tuple(dict.fromkeys(names[table.lower()] for table in tables))


def _place(table: str) -> tuple[bool, str]:
    return table == "abstract", table
