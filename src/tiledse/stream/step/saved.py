"""The state of a run between two pushes as a safetensors file, which any language reads: arrays and numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...documents import read_json, write_json
from ...errors import TiledSEError, first_line
from ...files import written_whole
from .header import Header

FORMAT = "tiledse.step-state/2"
KEY = "tiledse.step-state"
_WAITING = "waiting"


@dataclass(frozen=True)
class Saved:
    """A state that was read.

    Args:
        arrays: As the step takes them.
        waiting: Rows of the image that the next step is given.
        seen: Rows of the image that had come.
        ended: Whether the image was complete.
        given: Of each output whether it was given, where it comes once.
    """

    arrays: list[np.ndarray]
    waiting: np.ndarray
    seen: int
    ended: bool
    given: Sequence[bool]


def save_state(
    path: Path, header: Header, arrays: Sequence[np.ndarray], waiting: np.ndarray, seen: int, height: int | None,
    given: Sequence[bool],
) -> None:  # fmt: skip
    """Write a state.

    Raises:
        TiledSEError: the file cannot be written.
    """
    from safetensors.numpy import save_file

    tensors = {state.name: np.ascontiguousarray(a) for state, a in zip(header.states, arrays, strict=True)}
    tensors[_WAITING] = np.ascontiguousarray(waiting)
    record = {"format": FORMAT, "step": header.identity, "seen": seen, "height": height, "given": list(given)}
    text = write_json({**record, "sha256": _digest(record, tensors)})
    with written_whole(path) as part:
        save_file(tensors, part, metadata={KEY: text})


def next_window(header: Header, seen: int) -> int:
    """The first row of the window of the next step, where so many rows of an image have come and it has not ended."""
    steps = max(0, (seen - header.window - header.begin) // header.rows + 1)
    return header.begin + steps * header.rows


def _digest(record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """Of all that a state holds: a number that was changed in a copy cannot be seen in any other way."""
    digest = hashlib.sha256(f"{record['step']} {record['seen']}".encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def height_in(path: Path) -> int | None:
    """Rows of the image that a state is of; None where it did not say. What is wrong with it, ``load_state`` says."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            height = read_json((file.metadata() or {})[KEY])["height"]
    except Exception:
        return None
    return height if type(height) is int else None


def load_state(path: Path, header: Header, dtype: np.dtype[Any], height: int | None) -> Saved:
    """Read a state of a step.

    Raises:
        TiledSEError: no such file, no state, that of another step or of an image of another height, or a damaged one.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise TiledSEError(f"no state of a step {path}")
    try:
        with safe_open(path, framework="np") as file:
            record = read_json((file.metadata() or {})[KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        if not isinstance(record, dict) or record["format"] != FORMAT:
            raise ValueError(f"expected a header of format {FORMAT}")
    except Exception as error:  # a foreign, old or cut-off file fails in many ways
        raise TiledSEError(
            f"{path} is no state of a step ({type(error).__name__}: {first_line(error)})"
        ) from error
    if record.get("step") != header.identity:
        raise TiledSEError(
            f"the state {path} is of another step; take the file of the step that it was saved with, or begin the "
            "image anew"
        )
    try:
        return _checked(record, tensors, header, dtype, height)
    except (KeyError, ValueError, TypeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else first_line(error)
        raise TiledSEError(
            f"the state {path} is damaged: {what}; save it again, or begin the image anew"
        ) from error


def _checked(
    record: Mapping[str, Any], tensors: Mapping[str, np.ndarray], header: Header, dtype: np.dtype[Any],
    height: int | None,
) -> Saved:  # fmt: skip
    seen, stated, given = record["seen"], record["height"], record["given"]
    if type(seen) is not int or seen < 0 or not (stated is None or type(stated) is int):
        raise ValueError(f"expected rows that have come and a height, got {seen!r:.40} and {stated!r:.40}")
    if stated != height:
        raise TiledSEError(
            f"the state is of an image of {stated} rows, this run takes {height}; make the run for it"
        )
    if (
        not isinstance(given, list)
        or len(given) != len(header.heads)
        or not all(type(g) is bool for g in given)
    ):
        raise ValueError(f"expected {len(header.heads)} outputs, got {given!r:.60}")
    shapes = {state.name: state.shape for state in header.states}
    rows = 0 if seen == height else seen - max(0, min(next_window(header, seen), seen))
    shapes[_WAITING] = header.images, header.channels, rows, header.width
    if set(shapes) != set(tensors):
        raise ValueError(
            f"array {sorted(set(shapes) ^ set(tensors))[0]!r} is missing, or has no place in the step"
        )
    for name, shape in shapes.items():
        array = tensors[name]
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(f"'{name}' is {array.dtype} of {array.shape}, expected {dtype} of {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"'{name}' holds numbers that are not finite")
    if record["sha256"] != _digest(record, tensors):
        raise ValueError("it was changed after it was written")
    arrays = [tensors[state.name] for state in header.states]
    return Saved(arrays, tensors[_WAITING], seen, seen == height, given)
