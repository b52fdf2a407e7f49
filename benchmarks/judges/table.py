"""A table of results/judges: one row a network, form and configuration, written after each verdict."""

from __future__ import annotations

import csv
import os
from pathlib import Path

KEYS = ("network", "input", "form", "configuration")
Key = tuple[str, str, str, str]
# Columns that come last, whatever a judge says.
_LAST = ("judge", "error")


class Table:
    """Rows of one judge, on disk.

    Args:
        path: The file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self._read()

    def _read(self) -> dict[tuple[str, ...], dict[str, str]]:
        if not self.path.exists():
            return {}
        with self.path.open(newline="", encoding="utf-8") as file:
            return {tuple(row[key] for key in KEYS): row for row in csv.DictReader(file)}

    def there(self, key: Key, judge: str, again: bool = False) -> bool:
        """Whether there is a row by this version of the judge; with ``again``, rows with an error do not count."""
        row = self.rows.get(key)
        return row is not None and row["judge"] == judge and not (again and row.get("error"))

    def add(self, key: Key, found: dict[str, object], judge: str) -> None:
        """Add a row, or put it in the place of the one that is there, and write the table whole.

        Rows that another process has added since are kept: two networks may be judged at once.
        """
        row = dict(zip(KEYS, key)) | {k: str(v) for k, v in found.items()} | {"judge": judge}
        self.rows = {**self._read(), key: row}
        columns = list(dict.fromkeys(name for r in self.rows.values() for name in r))
        columns = [c for c in columns if c not in _LAST] + list(_LAST)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        with new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows.values())
        os.replace(new, self.path)
