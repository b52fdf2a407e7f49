"""JSON and TOML: read with bounds on depth and numbers, and one writer in which a figure is never NaN."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from .errors import TiledSEError, first_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What we and others write nests ten levels at most; Python's parsers give up between 300 and 100,000.
DEEPEST = 64
# A whole number of 64 bits has 19 digits, the longest spelling of a double about 25.
_LONGEST = 40
# What the safetensors library itself takes.
_LARGEST_HEADER = 100_000_000


def read_json(text: str | bytes, *, finite: bool = True) -> Any:
    """A JSON document from its text.

    Args:
        text: The document.
        finite: Refuse NaN and infinite numbers. Without it they are given as they are, for a reader that names
            the entry that holds one.

    Raises:
        ValueError: no JSON, nested deeper than 64 levels, a number of more than 40 characters, half a character.

    Example:
        >>> read_json('{"drop": 0.5}')
        {'drop': 0.5}
        >>> read_json('{"drop": NaN}')
        Traceback (most recent call last):
        ValueError: it holds NaN, which is no number; expected finite numbers
    """

    def constant(word: str) -> float:
        if finite:
            raise ValueError(f"it holds {word}, which is no number; expected finite numbers")
        return float(word.replace("Infinity", "inf"))

    def real(digits: str) -> float:
        return _finite(float(_short(digits)), digits) if finite else float(_short(digits))

    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(
            text, parse_constant=constant, parse_int=lambda d: int(_short(d)), parse_float=real
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    if re.search(r"\\u[dD][89a-fA-F]", text):
        _check_characters(value)
    return value


def read_toml(text: str) -> Any:
    """A TOML document from its text, with the bounds of ``read_json``.

    Raises:
        ValueError: no TOML, or beyond a bound.

    Example:
        >>> read_toml("rate = 0.1")
        {'rate': 0.1}
        >>> read_toml("rate = inf")
        Traceback (most recent call last):
        ValueError: it holds inf; expected finite numbers
    """
    # Before parsing: tomllib turns digits into a number in a time that grows with their square.
    if long := re.search(rf"[0-9][0-9_]{{{_LONGEST},}}", _without_texts(text)):
        _short(long.group())
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    for leaf in _leaves(value):
        if isinstance(leaf, float):
            _finite(leaf, str(leaf))
    return value


def read_document(path: Path) -> Any:
    """A JSON file, or a TOML file where the name does not end in .json.

    Raises:
        OSError: it cannot be read.
        ValueError: see ``read_json`` and ``read_toml``.
    """
    text = path.read_text(encoding="utf-8")
    return read_json(text) if path.suffix.lower() == ".json" else read_toml(text)


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """``__metadata__`` of a safetensors file: 8 bytes of length, then a header of JSON. Tensors are not read.

    Raises:
        OSError: it cannot be read.
        ValueError: no safetensors file.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size - 8):
            raise ValueError("it is no safetensors file, or it was cut off")
        header = read_json(file.read(length))
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("it is no safetensors file: its header is no table of texts")
    return metadata


def write_json(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """The text of a JSON document; each number in it is finite.

    Raises:
        TiledSEError: a figure is NaN or infinite; names it.

    Example:
        >>> write_json({"drop": 0.5})
        '{"drop": 0.5}'
        >>> write_json({"blocks": [{"drop": float("nan")}]})
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: the figure blocks[0].drop is nan, so nothing is written; ...
    """
    try:
        return json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError:
        name, number = next(_not_finite(value, ""), ("", "unknown"))
        raise TiledSEError(
            f"the figure {name} is {number}, so nothing is written; weights, images and results must be finite numbers"
        ) from None


_TOO_DEEP = f"it nests deeper than {DEEPEST} levels; no file of tiledse does"


def _short(digits: str) -> str:
    if len(digits) > _LONGEST:
        raise ValueError(
            f"it holds a number of {len(digits)} characters, {digits[:12]}...; expected at most {_LONGEST}"
        )
    return digits


def _finite(number: float, text: str) -> float:
    if not isfinite(number):
        raise ValueError(f"it holds {text}; expected finite numbers")
    return number


def _without_texts(text: str) -> str:
    """TOML without texts in quotation marks and comments: a long number in those is no number."""
    return re.sub(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|#.*", '""', text)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [entry for entry in level if isinstance(entry, (dict, list))]
        if not inner:
            return
        level = [one for entry in inner for one in (entry.values() if isinstance(entry, dict) else entry)]
    raise ValueError(_TOO_DEEP)


def _check_characters(value: Any) -> None:
    """Half of a pair of surrogates is no character: it can be neither printed nor written."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a character ({first_line(error)})") from None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _leaves(entry)
    else:
        yield value


def _not_finite(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not isfinite(value):
        yield name or "given", value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _not_finite(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for place, entry in enumerate(value):
            yield from _not_finite(entry, f"{name}[{place}]")
