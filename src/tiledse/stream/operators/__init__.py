"""How each operator treats rows: one function an operator, which adds a node to the row graph.

An operator that is not in the table works elementwise (torch's own tag says so), or it takes the whole map.
"""

from __future__ import annotations

from typing import Any

import torch

from ..builder import Builder, Ref, whole_numbers
from ..maps import First

# Each module enters its operators into the table.
from . import axes, blocks, frames, layout, statistics, windows  # noqa: F401
from .blocks import EXCITE
from .elementwise import elementwise
from .layout import over_its_map
from .statistics import followed
from .table import TABLE, Fx


def treat(b: Builder, fx: Fx, pick: Any) -> Ref:
    """Add the node of one operator to the row graph; ``pick`` is which of several results is meant."""
    late = None if pick is not None else followed(b, fx, lambda: _built(b, fx, None))
    return _built(b, fx, pick) if late is None else late


def _built(b: Builder, fx: Fx, pick: Any) -> Ref:
    refs, _ = b.call(fx)
    namespace = str(fx.target).split(".")
    name = namespace[1].rstrip("_") if namespace[0] == "aten" else ".".join(namespace[:2])
    if name in ("expand", "repeat"):
        repeated = over_its_map(b, fx)
        if repeated is not None:
            return repeated
    if all(b.values[r.index].row_dim is None for r in refs) and name != EXCITE:
        return _once(b, fx, pick)
    treatment = TABLE.get(name)
    if treatment is None and torch.Tag.pointwise in getattr(fx.target, "tags", ()):
        treatment = elementwise
    if treatment is None:
        return b.whole(fx, pick)
    return treatment(b, fx, pick)


def _once(b: Builder, fx: Fx, pick: Any) -> Ref:
    """All operands come as one piece, and so does the result."""
    refs, call = b.call(fx, pick)
    run = lambda parts, lo, hi: call(parts)  # noqa: E731
    return b.add(fx, "row", refs, [First()] * len(refs), run, None, pick, sizes=whole_numbers(fx))
