"""ONNX networks under measurement, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import onnx

from .. import onnx as room
from ..errors import TiledSEError, first_line
from ..networks.subject import See, SharedPrefix, Subject, first_tiled
from ..op.functional import squeeze
from ..plan import Plan
from ..tile import Tile
from .finder import Place, locate


class OnnxSubject(Subject):
    """An ONNX network.

    Args:
        model: The network, SE or converted; blocks with tiles are measured with plain SE.
        input_size: (C, H, W) of its images; needed where the file leaves height or width free.
        threads: Threads of ONNX Runtime; 0 leaves it to it.

    Raises:
        TiledSEError: the network has no image input, or ONNX Runtime does not take it.
    """

    def __init__(
        self, model: room.OnnxModel, input_size: Sequence[int] | None = None, threads: int = 0
    ) -> None:
        found = room.find(model, input_size)
        self.plan = found.with_tile("HxW") if len(found) else found
        self.model = room.convert(model, self.plan) if any(not t.whole for t in found.tiles) else model
        self.threads = threads
        self._places: tuple[Place, ...] | None = None
        self._observer: _Graph | None = None
        self._excitations: dict[int, _Graph] = {}

    def network(self, plan: Plan) -> nn.Module:
        """See Subject."""
        return room.OnnxModule(room.convert(self.model, plan), self.threads)

    def observe(self, inputs: Tensor, see: See) -> Any:
        """See Subject; the maps of all blocks are held for one batch."""
        if self._places is None:
            self._places = locate(self.model, self.plan.input_size).places
        sources = [place.squeeze.source.name or "" for place in self._places]
        if self._observer is None:
            self._observer = _Graph(_with_outputs(self.model.to_proto(), sources), self.threads)
        outputs = self._observer.outputs[: -len(sources)] if sources else self._observer.outputs
        got = self._observer.run({self._observer.inputs[0]: inputs.cpu().numpy()})
        for number, (place, source) in enumerate(zip(self._places, sources)):
            see(number, torch.from_numpy(got[source]).permute(0, *place.squeeze.axes))
        results = tuple(torch.from_numpy(got[name]) for name in outputs)
        return results[0] if len(results) == 1 else results

    def squeeze(self, block: int, x: Tensor, tile: Tile) -> Tensor:
        """See Subject; by torch, on the map that ONNX Runtime gave."""
        return squeeze(x, tile)

    def excite(self, block: int, descriptors: Tensor) -> Tensor:
        """See Subject; the nodes of the excitation, cut out of the network."""
        if not self._excitations:
            # In the form for strips of one row: there every excitation takes a grid of descriptors.
            strips = room.convert(self.model, self.plan.with_tile("1xW"))
            found = locate(strips, self.plan.input_size)
            for number, place in enumerate(found.places):
                proto = _excitation(place, found.constants, strips.opset)
                self._excitations[number] = _Graph(proto, self.threads)
        graph = self._excitations[block]
        feeds = {graph.inputs[0]: np.ascontiguousarray(descriptors.float().cpu().numpy())}
        return torch.from_numpy(graph.run(feeds)[graph.outputs[0]])

    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """See Subject."""
        return _Cut(self, plans)


class _Graph:
    """A graph in ONNX Runtime, by names of inputs and outputs."""

    def __init__(self, proto: onnx.ModelProto, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has many errors without a common class
            raise TiledSEError(
                f"ONNX Runtime does not take a part of the network: {first_line(error)}"
            ) from error
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.types = {value.name: value.type for value in self.session.get_outputs()}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self.outputs, self.session.run(None, feeds)))
        except Exception as error:
            shapes = ", ".join(str(tuple(array.shape)) for array in feeds.values())
            raise TiledSEError(f"the network fails on {shapes}: {first_line(error, 140)}") from error


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The same network with more outputs; their types are left to ONNX Runtime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return copy


def _excitation(place: Place, constants: Any, opset: int) -> onnx.ModelProto:
    """From descriptors (N, C, rows, cols) to gates, as a network of its own."""
    import onnx_ir as ir

    nodes = [ir.to_proto(node) for node in place.excitation.nodes]
    made = {value for node in place.excitation.nodes for value in node.outputs}
    start, gate = place.squeeze.descriptors, place.excitation.gate
    weights: dict[str, onnx.TensorProto] = {}
    for node in place.excitation.nodes:
        for value in node.inputs:
            if value is None or value in made or value is start:
                continue
            array = constants.array(value)
            assert array is not None, "an excitation takes descriptors and constants only"
            weights[value.name or ""] = onnx.numpy_helper.from_array(np.asarray(array), value.name)
    image = onnx.helper.make_tensor_value_info(
        start.name or "", onnx.TensorProto.FLOAT, ["n", None, "rows", "cols"]
    )
    graph = onnx.helper.make_graph(
        nodes, "excitation", [image], [onnx.ValueInfoProto(name=gate.name)], list(weights.values())
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


class _Cut(SharedPrefix):
    """``SharedPrefix`` of an ONNX network: each form is cut at its first tiled block.

    The SE network runs once and gives, besides its outputs, every value that a form takes from before its first tiled
    block. ONNX Runtime fuses other operators in parts than in a whole network, so results are equal but for rounding.
    """

    def __init__(self, subject: OnnxSubject, plans: Sequence[Plan]) -> None:
        proto = subject.model.to_proto()
        self.results = [value.name for value in proto.graph.output]
        self.image = next(
            v.name for v in proto.graph.input if v.name not in {w.name for w in proto.graph.initializer}
        )
        divisible = not any(a.type == a.GRAPH for node in proto.graph.node for a in node.attribute)
        own = {node.SerializeToString() for node in proto.graph.node}
        cuts: list[tuple[onnx.ModelProto, list[str]] | None] = []
        for plan in plans:
            if first_tiled(plan) is None:
                cuts.append(None)
                continue
            form = room.convert(subject.model, plan).to_proto()
            cuts.append(_cut(form, own, self.image) if divisible else (form, [self.image]))
        if not divisible:
            self.whole = tuple(block.name for block in subject.plan.blocks)
        crossing = {name: None for cut in cuts if cut for name in cut[1] if name != self.image}
        self.prefix = _Graph(_with_outputs(proto, list(crossing)), subject.threads)
        self.suffixes: list[_Graph | None] = []
        for cut in cuts:
            if cut is not None and divisible:
                _declare(cut[0], cut[1], self.prefix.types)
            self.suffixes.append(None if cut is None else _Graph(cut[0], subject.threads))

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
    """The part of a tiled form that is not in the SE network or follows such a part, and what it takes from before.

    Constants are no part of what is taken: they come along.
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
