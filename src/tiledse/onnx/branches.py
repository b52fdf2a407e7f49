"""Several tiled forms of an ONNX network side by side, with what they have in common run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import onnx

from ..network import SharedPrefix, first_tiled
from ..plan import Plan
from .graph import Graph, with_outputs
from .model import OnnxModel
from .probe import Probe


class Probed(SharedPrefix):
    """``SharedPrefix`` for strips of rows.

    ONNX Runtime fuses other operators in parts than in a whole network, so results are equal but for rounding.
    """

    def __init__(self, probe: Probe, plans: Sequence[Plan]) -> None:
        self.probe = probe
        self.feeds = [probe.feeds(plan) for plan in plans]
        self.firsts = [first_tiled(plan) for plan in plans]

    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """See SharedPrefix."""
        for arrays in self.probe.run_forms(inputs.cpu().numpy(), self.feeds, self.firsts):
            given = tuple(torch.from_numpy(array) for array in arrays)
            yield given[0] if len(given) == 1 else given


class Cut(SharedPrefix):
    """``SharedPrefix`` of an ONNX network: each form is cut at its first tiled block.

    The SE network runs once and gives, besides its outputs, every value that a form takes from before its first tiled
    block. ONNX Runtime fuses other operators in parts than in a whole network, so results are equal but for rounding.
    """

    def __init__(
        self, model: OnnxModel, plans: Sequence[Plan], forms: Sequence[OnnxModel], threads: int
    ) -> None:
        proto = model.to_proto()
        self.results = [value.name for value in proto.graph.output]
        self.image = next(
            v.name for v in proto.graph.input if v.name not in {w.name for w in proto.graph.initializer}
        )
        divisible = not any(a.type == a.GRAPH for node in proto.graph.node for a in node.attribute)
        own = {node.SerializeToString() for node in proto.graph.node}
        cuts: list[tuple[onnx.ModelProto, list[str]] | None] = []
        for plan, form in zip(plans, forms, strict=True):
            if first_tiled(plan) is None:
                cuts.append(None)
                continue
            whole = form.to_proto()
            cuts.append(_cut(whole, own, self.image) if divisible else (whole, [self.image]))
        if not divisible:
            self.unshared = tuple(block.name for block in plans[0].blocks)
        crossing = {name: None for cut in cuts if cut for name in cut[1] if name != self.image}
        self.prefix = Graph(with_outputs(proto, list(crossing)), threads)
        self.suffixes: list[Graph | None] = []
        for cut in cuts:
            if cut is not None and divisible:
                _declare(cut[0], cut[1], self.prefix.types)
            self.suffixes.append(None if cut is None else Graph(cut[0], threads))

    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """See SharedPrefix."""
        array = inputs.cpu().numpy()
        known = {**self.prefix.run({self.image: array}), self.image: array}
        yield self._result(known)
        for suffix in self.suffixes:
            if suffix is None:
                yield self._result(known)
            else:
                got = suffix.run({name: known[name] for name in suffix.inputs})
                yield self._result({**known, **got})

    def _result(self, values: dict[str, np.ndarray]) -> Any:
        outputs = tuple(torch.from_numpy(values[name]) for name in self.results)
        return outputs[0] if len(outputs) == 1 else outputs


def _cut(form: onnx.ModelProto, own: set[bytes], image: str) -> tuple[onnx.ModelProto, list[str]]:
    """Cut a tiled form where it leaves the SE network.

    The part that is kept has the nodes that the SE network has not, and all nodes behind them. Constants come along
    with it. The second result names the values that the part takes from the SE network.
    """
    graph = form.graph
    weights = {tensor.name for tensor in graph.initializer}
    fixed, changed = set(weights), set[str]()
    nodes: list[onnx.NodeProto] = []
    constant: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if any(name in changed for name in inputs):
            nodes.append(node)
            changed.update(node.output)
        elif all(name in fixed for name in inputs):
            fixed.update(node.output)
            constant.update(dict.fromkeys(node.output, node))
        elif node.SerializeToString() not in own:
            nodes.append(node)
            changed.update(node.output)
    taken: dict[str, None] = {}
    needed: list[onnx.NodeProto] = []
    waiting = [name for node in nodes for name in node.input if name]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name in changed:
            continue
        seen.add(name)
        if name in constant:
            if constant[name] not in needed:
                needed.append(constant[name])
                waiting += [i for i in constant[name].input if i]
        elif name not in weights:
            taken[name] = None
    order = {id(node): at for at, node in enumerate(graph.node)}
    chosen = sorted([*needed, *nodes], key=lambda node: order[id(node)])
    part = onnx.ModelProto()
    part.CopyFrom(form)
    del part.graph.node[:], part.graph.input[:], part.graph.value_info[:], part.graph.output[:]
    part.graph.node.extend(chosen)
    part.graph.output.extend(value for value in graph.output if value.name in changed)
    used = {name for node in chosen for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del part.graph.initializer[:]
    part.graph.initializer.extend(kept)
    return part, list(taken)


_TYPES = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(double)": onnx.TensorProto.DOUBLE,
    "tensor(int64)": onnx.TensorProto.INT64,
    "tensor(int32)": onnx.TensorProto.INT32,
    "tensor(bool)": onnx.TensorProto.BOOL,
}


def _declare(part: onnx.ModelProto, names: Sequence[str], types: dict[str, str]) -> None:
    """Make values the inputs of a part, of the types that they have in the whole network."""
    for name in names:
        kind = _TYPES[types.get(name, "tensor(float)")]
        part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
