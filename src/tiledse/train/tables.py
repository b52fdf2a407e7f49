"""Tables of keys, as TOML and JSON have them: merged, compared, and made into checked values."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import TiledSEError

T = TypeVar("T")


def differences(
    mine: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """(dotted key, mine, the other's) of each key in which two recipes' dictionaries differ.

    Example:
        >>> differences({"epochs": 2, "loss": {"smoothing": 0.1}}, {"epochs": 2, "loss": {"smoothing": 0.0}})
        [('loss.smoothing', 0.1, 0.0)]
    """
    found: list[tuple[str, Any, Any]] = []
    for key in dict.fromkeys((*mine, *other)):
        a, b = mine.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the keys of another in place of its own, table by table within it."""
    result = dict(data)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def made(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from a table, with every key and type checked."""
    if not isinstance(data, Mapping):
        raise TiledSEError(f"{where}: expected a table of keys, got {data!r}")
    hints = get_type_hints(cls)
    entries = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = [entry.name for entry in entries]
    values = {}
    for key, value in data.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}"
            raise TiledSEError(f"{where}: no key '{key}'; {hint}")
        values[key] = _value(hints[key], value, f"{where}: {key}")
    needed = [e.name for e in entries if e.default is e.default_factory is dataclasses.MISSING]
    for name in needed:
        if name not in values:
            raise TiledSEError(f"{where}: the key '{name}' is missing")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _value(next(one for one in inner if one is not type(None)), value, where)
    if origin is Literal:
        if value not in inner:
            raise TiledSEError(f"{where} = {value!r}; expected {', '.join(map(str, inner))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            raise TiledSEError(
                f"{where} = {value!r}; expected a list{'' if inner[-1] is ... else f' of {len(inner)}'}"
            )
        return tuple(_value(inner[0], one, where) for one in value)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return made(kind, value, where.replace(": ", ", ", 1))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TiledSEError(f"{where} = {value!r}; expected {_KINDS[kind]}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
