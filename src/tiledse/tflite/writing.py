"""Write a converted TensorFlow Lite network, and say what its verification gave."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..network import Form, Written
from ..plan import Plan
from .converter import Converted, convert_verified
from .finder import Finding
from .graph import Graph
from .model import TfliteModel, save


@dataclass(frozen=True)
class TfliteWritten(Written):
    """See Written.

    Args:
        made: What was converted, and what verifying gave.
        before: Operators of the network as it was.
        after: Operators of what was written.
    """

    made: Converted
    before: dict[str, int]
    after: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """See Written."""
        made = self.made
        return {
            **super().to_dict(),
            "max_abs_diff_identity": made.difference,
            "max_rel_diff_identity": made.relative,
            "max_rel_diff_blocks": None if made.difference is None else made.worst_block,
            "verify_s": self.seconds,
            "tiles": {b.name: str(t) for b, t in self.plan},
            "operators": {"before": self.before, "after": self.after},
            "output": str(self.path),
        }

    def lines(self) -> list[str]:
        """See Written."""
        names = sorted({*self.before, *self.after}, key=lambda op: (-self.after.get(op, 0), op))
        width = max([9, *map(len, names)])
        rows = [f"{op:{width}}  {self.before.get(op, 0):6}  {self.after.get(op, 0):5}" for op in names]
        return [*super().lines(), *self._verified(), f"{'operators':{width}}  before  after", *rows]

    def _verified(self) -> list[str]:
        """What verifying gave, and how long it took."""
        made = self.made
        if made.difference is None or self.seconds is None:
            return [
                "not verified (--no-verify)" if self.seconds is None else "verified: no block has changed"
            ]
        return [
            f"verified in {self.seconds:.1f} s in LiteRT, on a random image;",
            "each figure is a largest difference relative to the largest number:",
            f"  each block, to itself as it was on each tile alone: {made.worst_block:.1e}",
            f"  with one strip over each map, to the network as it was: {made.relative:.1e}",
        ]


def write(found: Finding, plan: Plan, path: Path, form: Form) -> TfliteWritten:
    """Write a converted network.

    Raises:
        TiledSEError: see ``convert`` and ``save``.
    """
    made = convert_verified(found, plan, verify=form.verify)
    save(made.model, path, force=form.force)
    return TfliteWritten(
        made.plan, made.refused, made.seconds, path, made, operators(found.model), operators(made.model)
    )


def operators(model: TfliteModel) -> dict[str, int]:
    """The operators of a network and how many there are of each."""
    graph = Graph(model)
    return dict(Counter(graph.kind(op) for op in graph.operators).most_common())
