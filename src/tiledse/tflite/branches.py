"""Several tiled forms of a TensorFlow Lite network side by side, with what they have in common run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..network import SharedPrefix, first_tiled
from ..plan import Plan
from .cutting import cut, with_outputs
from .finder import Finding
from .graph import Graph
from .model import TfliteModel
from .module import sizes_of, to_file, to_torch
from .running import Runner, feeds_of


class Cut(SharedPrefix):
    """``SharedPrefix`` of a TensorFlow Lite network: each form is cut where its first tiled block begins.

    LiteRT fuses other operators in parts than in a whole network, so results are equal but for rounding.

    Args:
        found: The network with plain SE.
        plans: The tiles of each form.
        forms: The forms.
        threads: Threads of LiteRT.
        exact: See ``Runner``.
    """

    def __init__(
        self, found: Finding, plans: Sequence[Plan], forms: Sequence[TfliteModel], threads: int, exact: bool
    ) -> None:
        self.graph, self.image = found.graph, found.image
        self.rest = feeds_of(found.model, found.image.tensor)
        cuts: list[tuple[list[int], list[int], TfliteModel] | None] = []
        for plan, form in zip(plans, forms, strict=True):
            first = first_tiled(plan)
            cuts.append(None if first is None else _cut(found, first, form))
        crossing = [t for one in cuts if one is not None for t in one[0] if t not in self.graph.inputs]
        tapped = with_outputs(found.model, crossing)
        self.given = [int(t) for t in tapped.tree.subgraphs[0].outputs]
        self.prefix = Runner(tapped, threads, exact=exact, sizes=sizes_of(self.graph, self.image))
        self.suffixes = [
            None if one is None else (one[0], one[1], Runner(one[2], threads, exact=exact)) for one in cuts
        ]

    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """See SharedPrefix."""
        parts = []
        for image in to_file(self.graph, self.image, inputs):
            feeds = {**self.rest, self.image.tensor: image}
            known = {**feeds, **dict(zip(self.given, self.prefix(feeds), strict=True))}
            results = [known]
            for suffix in self.suffixes:
                if suffix is None:
                    results.append(known)
                    continue
                taken, gives, runner = suffix
                got = runner({tensor: known[tensor] for tensor in taken})
                results.append({**known, **dict(zip(gives, got, strict=True))})
            parts.append([[values[t] for t in self.graph.outputs] for values in results])
        for form in zip(*parts, strict=True):
            joined = [np.concatenate(each) for each in zip(*form, strict=True)]
            tensors = tuple(
                to_torch(self.graph, t, array) for t, array in zip(self.graph.outputs, joined, strict=True)
            )
            yield tensors[0] if len(tensors) == 1 else tensors


def _cut(found: Finding, first: int, form: TfliteModel) -> tuple[list[int], list[int], TfliteModel]:
    """The part of a form from its first tiled block on: what it takes, what it gives, and itself."""
    graph, own = Graph(form), found.graph
    place = own.place(found.places[first].squeeze[0])
    before = {int(t) for op in own.operators[:place] for t in op.outputs} | set(own.inputs)
    behind = [op for op in graph.operators if not all(int(t) in before for t in op.outputs)]
    changed = {int(t) for op in behind for t in op.outputs}
    outputs = [t for t in graph.outputs if t in changed]
    taken = {t for op in behind for t in map(int, op.inputs) if t in before and not graph.is_constant(t)}
    inputs = sorted(taken)
    part = cut(form, inputs, outputs)
    return inputs, outputs, part
