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
class Core:
    """What several layers take turns on: one row of one of them at a time.

    Args:
        layers: Globs of layer names, or of ``NAME:KIND`` (``*:squeeze``, ``*:gate``). A layer that no core names runs
            where its first input is made.
        multipliers: Multiply-adds a cycle.
        elements: Elements a cycle that layers without multiply-adds read; left out, they take a cycle a row.
    """

    layers: tuple[str, ...]
    multipliers: int | None = None
    elements: int | None = None


@dataclass(frozen=True)
class Bus:
    """What rows travel on from core to core, one after the other.

    Args:
        bits: Its width: bits a cycle.
        cores: Globs of the cores that it joins; ``image`` and ``output`` are the way in and out. Left out, all cores
            and neither of these.
    """

    bits: int
    cores: tuple[str, ...] | None = None


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
        cores: Cores by name, which layers share. Left out, each layer has multipliers of its own.
        buses: Buses by name, between cores. Left out, rows are there as soon as they are made.
        element_bits: Bits of an element on a bus.

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
    cores: Mapping[str, Core] = field(default_factory=dict)
    buses: Mapping[str, Bus] = field(default_factory=dict)
    element_bits: int = 8

    def __post_init__(self) -> None:
        single = {
            "multipliers": self.multipliers,
            "image_cycles_per_row": self.image_cycles_per_row,
            "element_bits": self.element_bits,
        }
        named = {
            f"{table}['{name}']": number
            for table in ("cycles_per_row", "fifo_rows")
            for name, number in getattr(self, table).items()
        }
        for kind, table in (("cores", self.cores), ("buses", self.buses)):
            for name, part in table.items():
                numbers = {k: v for k, v in vars(part).items() if k not in ("layers", "cores")}
                named.update({f"{kind}['{name}'].{k}": v for k, v in numbers.items()})
        if self.buses and not self.cores:
            raise TiledSEError("hardware: buses join cores; give [cores.NAME] tables as well")
        for name, number in (*single.items(), *named.items()):
            if number is None and name.rpartition(".")[2] in _MAY_BE_LEFT_OUT:
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
        parts = {
            kind: {
                name: _part(made, part, f"{kind}['{name}']") for name, part in _table(content, kind).items()
            }
            for kind, made in (("cores", Core), ("buses", Bus))
        }
        return cls(**{**content, **parts})

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


_MAY_BE_LEFT_OUT = ("image_cycles_per_row", "multipliers", "elements")


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, Mapping):
        raise TiledSEError(f"hardware: expected {key} to be a table of names, got {quoted(table)}")
    return table


def _part(made: type, content: Any, where: str) -> Any:
    """A core or a bus from JSON or TOML types.

    Raises:
        TiledSEError: an unknown key, one that is missing, or a value of another kind.
    """
    keys = [f.name for f in fields(made)]
    if not isinstance(content, Mapping) or (unknown := sorted(set(content) - set(keys))):
        got = quoted(content) if not isinstance(content, Mapping) else f"key '{unknown[0]}'"
        raise TiledSEError(f"hardware: {where}: expected keys of {', '.join(keys)}, got {got}")
    if keys[0] not in content:
        raise TiledSEError(f"hardware: {where} needs '{keys[0]}'")
    values = dict(content)
    for key in ("layers", "cores"):
        if key in values:
            names = values[key]
            if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
                raise TiledSEError(f"hardware: {where}.{key}: expected a list of names, got {quoted(names)}")
            values[key] = tuple(names)
    return made(**values)


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
