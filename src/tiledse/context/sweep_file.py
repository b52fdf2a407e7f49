"""The file of a sweep: one result a row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import TiledSEError
from ..files import write_csv
from ..locks import locked
from ..numerals import parse_real

COLUMNS = (
    "model", "weights", "task", "data", "preprocess", "input", "tile", "n", "metric", "se", "tse", "drop",
    "drop_low", "drop_high", "agree", "lost", "gained", "p_value", "se_buffer", "buffer", "buffer_row_order",
)  # fmt: skip
_KEY = COLUMNS[:7]
_NUMBERS = ("n", *COLUMNS[9:])


class SweepFile:
    """A CSV file with one result a row, to which rows are added; what is in it need not be measured again.

    Weights and data are known by the names of their files and folders: keep one file for each set of images.

    Args:
        path: The file; it need not exist.

    Raises:
        TiledSEError: it exists and is no such file.

    Example:
        >>> import tempfile
        >>> file = SweepFile(Path(tempfile.mkdtemp()) / "sweep.csv")
        >>> row = dict.fromkeys(COLUMNS, "") | {"model": "m", "tile": "7xW"}
        >>> file.add(row)
        >>> SweepFile(file.path).has(row), SweepFile(file.path).has(row | {"tile": "3xW"})
        (True, False)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, str]] = []
        if not self.path.parent.is_dir():
            raise TiledSEError(
                f"cannot write {self.path}: there is no folder {self.path.parent}; make it first"
            )
        self.rows = self._read()

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                names = tuple(reader.fieldnames or ())  # while the file is open: an empty one has none yet
                rows = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise TiledSEError(f"cannot read {self.path}: {error}") from error
        if names != COLUMNS:
            raise TiledSEError(
                f"{self.path} is no result of a sweep, so nothing is added to it; give another name with -o"
            )
        for line, row in enumerate(rows, 2):
            self._check(row, line)
        return rows

    def _check(self, row: dict[Any, Any], line: int) -> None:
        """Check a row that was read: what is drawn and printed beside new rows must be as good as they are."""
        try:
            if set(row) != set(COLUMNS) or None in row.values():
                raise ValueError(f"expected {len(COLUMNS)} cells, as the header has")
            for column in _NUMBERS:
                if row[column]:  # a figure that does not exist is an empty cell
                    parse_real(row[column], column)
        except ValueError as error:
            raise TiledSEError(
                f"{self.path}, about line {line}, is no result of a sweep: {error}; remove the line, or give another "
                "name with -o"
            ) from error

    def has(self, row: dict[str, Any]) -> bool:
        """Whether there is a row of the same network, weights, data and tile."""
        return any(all(old[key] == str(row[key]) for key in _KEY) for old in self.rows)

    def rows_of(self, labels: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The rows of some networks; the file may hold those of other networks, weights and images besides.

        Args:
            labels: What the file says of each network, such as ``{"model": "timm:regnety_008", "task": "classify"}``.
        """
        return [row for row in self.rows if any(one.items() <= row.items() for one in labels)]

    def add(self, row: dict[str, Any]) -> None:
        """Add a row and write the file, whole or not at all; rows that another sweep has added meanwhile stay.

        Raises:
            TiledSEError: it cannot be written, or is no result of a sweep any more.
        """
        with locked(self.path):
            rows = self._read()
            if not any(all(old[key] == str(row[key]) for key in _KEY) for old in rows):
                rows.append({key: str(row[key]) for key in COLUMNS})
                write_csv(self.path, rows, COLUMNS)
            self.rows = rows
