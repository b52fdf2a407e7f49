"""Hardware: what the simulated accelerator has, from a small file or by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..documents import read_document
from ..errors import TiledSEError, first_line
from ..numerals import quoted, whole


@dataclass(frozen=True)
class Hardware:
    """A pipelined accelerator: a stage for each layer, with a row FIFO after it.

    Args:
        multipliers: Multiply-adds a cycle, of all stages together. They are shared out by each stage's
            multiply-adds in a frame; an excitation is sized to make a gate in the time of one row of its map.
        image_cycles_per_row: How often a row of the image comes; left out, as fast as the slowest stage takes
            a frame.
        cycles_per_row: Cycles a row by glob of layer names, instead of the share of multipliers.
        fifo_rows: Rows of a FIFO by glob of layer names, instead of the size asked for.

    Raises:
        TiledSEError: a number below 1.

    Example:
        >>> Hardware.from_dict({"multipliers": 1024, "cycles_per_row": {"conv_stem": 500}}).multipliers
        1024
    """

    multipliers: int = 4096
    image_cycles_per_row: int | None = None
    cycles_per_row: Mapping[str, int] = field(default_factory=dict)
    fifo_rows: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        single = {"multipliers": self.multipliers, "image_cycles_per_row": self.image_cycles_per_row}
        named = {
            f"{table}['{name}']": number
            for table in ("cycles_per_row", "fifo_rows")
            for name, number in getattr(self, table).items()
        }
        for name, number in (*single.items(), *named.items()):
            if number is None and name == "image_cycles_per_row":
                continue
            try:
                whole(number, name)
            except ValueError as error:
                raise TiledSEError(f"hardware: {error}") from None

    @classmethod
    def from_dict(cls, content: Any) -> Hardware:
        """From JSON or TOML types.

        Raises:
            TiledSEError: an unknown key, or a value of another kind.
        """
        known = [f.name for f in fields(cls)]
        if not isinstance(content, Mapping):
            raise TiledSEError(
                f"hardware: expected a table with keys of {', '.join(known)}, got {quoted(content)}"
            )
        unknown = sorted(set(content) - set(known))
        if unknown:
            raise TiledSEError(f"hardware: unknown key '{unknown[0]}'; the keys are {', '.join(known)}")
        for table in ("cycles_per_row", "fifo_rows"):
            if not isinstance(content.get(table, {}), Mapping):
                raise TiledSEError(
                    f"hardware: expected {table} to be a table of layer names, got {quoted(content[table])}"
                )
        return cls(**content)

    @classmethod
    def load(cls, path: str | Path) -> Hardware:
        """Read a hardware file: TOML, or JSON.

        Raises:
            TiledSEError: no such file, no TOML or JSON, unknown keys, zero rates.
        """
        path = Path(path)
        if not path.is_file():
            raise TiledSEError(f"no hardware file {path}; expected TOML or JSON")
        try:
            content = read_document(path)
        except (OSError, ValueError) as error:
            raise TiledSEError(f"cannot read hardware file {path}: {first_line(error)}") from error
        return cls.from_dict(content)


def matching(table: Mapping[str, int], names: list[str], what: str) -> dict[int, int]:
    """Numbers by index for the names that the globs of a table match; later globs win.

    Raises:
        TiledSEError: a glob that matches nothing.
    """
    found: dict[int, int] = {}
    for glob, number in table.items():
        hits = [i for i, name in enumerate(names) if fnmatchcase(name, glob)]
        if not hits:
            near = ", ".join(dict.fromkeys(names[:4]))
            raise TiledSEError(f"hardware: {what} '{glob}' matches no layer; the layers are {near}, ...")
        found.update(dict.fromkeys(hits, number))
    return found
