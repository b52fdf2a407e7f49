"""Whether a saved state can be one of this stream: its counts, shapes, types and numbers, against the row graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..numerals import MOST, quoted, whole
from .engine import Engine
from .flow import Flow

# Counting on takes as long as so many steps do; a longer image of unknown height is checked against its bounds only.
_MOST_STEPS = 100_000


def check_state(engine: Engine, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Check what a state file says before an engine takes it over.

    Args:
        engine: A fresh engine of the stream.
        header: ``produced``, ``taken``, ``starts`` and ``states``, from JSON.
        tensors: What the file holds.

    Raises:
        ValueError: a count, shape, type or number that the stream cannot have come to.
    """
    for name in ("taken", "starts", "states"):
        if not isinstance(header[name], dict):
            raise ValueError(f"expected {name} to be a table, got {quoted(header[name])}")
    produced = _check_counts(engine, header)
    expected = _check_rows(engine, produced, header["starts"], tensors)
    expected |= _check_sums(engine, produced, header["states"], tensors)
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)[0]
        raise ValueError(f"tensor {quoted(odd)} is missing, or has no place in the stream")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor '{name}' holds numbers that are not finite")


def _check_counts(engine: Engine, header: Mapping[str, Any]) -> list[int]:
    """Rows that each value must have made by now: those that a flow of integers makes from as many rows."""
    values, given = engine.graph.values, header["produced"]
    if not isinstance(given, list) or len(given) != len(values):
        raise ValueError(f"expected produced to be {len(values)} counts, got {quoted(given)}")
    produced = [whole(count, "rows made", 0) for count in given]
    for value, count in zip(values, produced, strict=True):
        if engine.known and count > value.height:
            raise ValueError(f"'{value.name}' made {count} rows, but it has {value.height}")
    if produced[0] <= engine.rows * _MOST_STEPS:
        flow = Flow(engine.graph, engine.rows, engine.known)
        for start in range(0, produced[0], engine.rows):
            flow.feed(min(engine.rows, produced[0] - start))
        if flow.progress.produced != produced:
            raise ValueError(
                f"after {produced[0]} rows of the image its layers cannot have made these counts of rows"
            )
    taken = {str(i): produced[engine.graph.nodes[i].inputs[0]] for i in engine.taken}
    if header["taken"] != taken or any(isinstance(count, bool) for count in header["taken"].values()):
        raise ValueError("running sums cannot have taken in these counts of rows")
    return produced


def _check_rows(
    engine: Engine, produced: list[int], starts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> set[str]:
    engine.progress.produced = list(produced)
    engine.taken = {i: produced[engine.graph.nodes[i].inputs[0]] for i in engine.taken}
    names = set()
    for index, value in enumerate(engine.graph.values):
        needed = min(engine.cursor(index), produced[index])
        if str(index) not in starts:
            if value.users and needed < produced[index]:
                raise ValueError(f"rows of '{value.name}' that are still needed are missing")
            continue
        start = whole(starts[str(index)], "the first row held", 0, needed)
        shape = list(value.shape)
        if value.row_dim is not None:
            shape[value.row_dim] = produced[index] - start
        _check_tensor(tensors, f"rows.{index}", shape, engine.graph.dtype)
        names.add(f"rows.{index}")
    if extra := set(starts) - {str(i) for i in range(len(engine.graph.values))}:
        raise ValueError(f"rows of a layer that is none: {quoted(min(extra))}")
    return names


def _check_sums(
    engine: Engine, produced: list[int], states: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> set[str]:
    """States of running sums: like the one that a row of zeros gives, but for the count of rows that is kept."""
    names = set()
    for index, node in enumerate(engine.graph.nodes):
        begun = produced[node.inputs[0]] > 0 and produced[node.output] == 0 if node.absorbs else False
        items = states.get(str(index))
        if items is None:
            if begun or (node.stateful and produced[node.output] > 0):
                raise ValueError(f"the running sum of '{node.name}' is missing")
            continue
        value = engine.graph.values[node.inputs[0]]
        if not (begun or (node.stateful and produced[node.output] > 0)):
            raise ValueError(f"'{node.name}' has no running sum by now")
        if node.stateful:
            shape = [*value.shape[:2], 1, 1]
            shapes: list[list[int] | None] = [shape, shape, None]
            kinds: list[torch.dtype | None] = [torch.float64, torch.float64, None]
        else:
            shape = list(value.shape)
            shape[value.row_dim or 0] = 1
            wide = torch.float64 if node.wide else engine.graph.dtype
            example = node.run(torch.zeros(shape, dtype=wide, device=engine.graph.device), None)
            shapes = [list(item.shape) if isinstance(item, Tensor) else None for item in example]
            kinds = [item.dtype if isinstance(item, Tensor) else None for item in example]
        if not isinstance(items, list) or [item is None for item in items] != [s is not None for s in shapes]:
            raise ValueError(f"the running sum of '{node.name}' is {quoted(items)}, which it cannot be")
        for place, (item, wanted, kind) in enumerate(zip(items, shapes, kinds, strict=True)):
            name = f"state.{index}.{place}"
            if wanted is None:
                # Of rows; of elements, where a mean takes in rows as they come.
                whole(
                    item, f"a count of '{node.name}'", 0, produced[node.inputs[0]] if node.stateful else MOST
                )
                continue
            if node.stateful and place == 1:
                first = whole(items[2], f"a count of '{node.name}'", 0, produced[node.inputs[0]])
                kept = tensors[name].shape[2] if name in tensors and tensors[name].dim() == 4 else 0
                wanted = [*wanted[:2], min(kept, produced[node.inputs[0]] - first), 1]
            assert kind is not None
            _check_tensor(tensors, name, wanted, kind)
            names.add(name)
    if extra := set(states) - {str(i) for i in range(len(engine.graph.nodes))}:
        raise ValueError(f"a running sum of a layer that is none: {quoted(min(extra))}")
    return names


def _check_tensor(tensors: Mapping[str, Tensor], name: str, shape: list[int], dtype: torch.dtype) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(f"tensor '{name}' is missing")
    if list(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(
            f"tensor '{name}' is {list(tensor.shape)}, {tensor.dtype}; expected {shape}, {dtype}"
        )
