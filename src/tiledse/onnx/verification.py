"""Verify a converted ONNX network: against the network it came from, and against the operator in PyTorch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from ..correction import Correction
from ..errors import TiledSEError, first_line
from ..op.functional import correct, scale, squeeze
from ..plan import Plan
from ..tile import Tile
from .comparing import distance, feeds_of, relative
from .converter import convert
from .finder import Finding, Place, find, locate
from .model import OnnxModel
from .runner import session
from .shapes import batched


@dataclass(frozen=True)
class Verification:
    """What was measured on a converted network.

    Attributes:
        identity: Largest relative difference between the input network and the converted one given its old tiles
            again (``HxW``, where it had none), over all outputs: max |a - b| / max |a|.
        identity_abs: The same, not relative.
        blocks: For each block, that between its product and the PyTorch reference on the block's own input.
        before: Operators of the input network and how many there are of each.
        after: Operators of the converted one.
    """

    identity: float
    identity_abs: float
    blocks: dict[str, float]
    before: dict[str, int]
    after: dict[str, int]

    @property
    def worst_block(self) -> float:
        """The largest of ``blocks``."""
        return max(self.blocks.values(), default=0.0)


def verify(
    original: OnnxModel, converted: OnnxModel, plan: Plan, *, x: np.ndarray | None = None, seed: int = 0
) -> Verification:
    """Compare a converted network with where it came from, in ONNX Runtime without graph optimisation.

    Args:
        original: The network before.
        converted: The network after.
        plan: The tiles that it was given.
        x: A batch for its image input, in the input's own layout; random numbers, if left out.
        seed: For the random numbers.

    Raises:
        TiledSEError: ONNX Runtime takes one of the two not, or ``converted`` has other tiles than the plan.
    """
    plan.check_single_images("single images are compared here; convert has tried it on a stream of frames")
    found = locate(converted, plan.input_size)
    plan.check_network(found.plan)
    if found.plan.tiles != plan.tiles:
        wrong = next(b.name for (b, t), now in zip(plan, found.plan.tiles) if t != now)
        raise TiledSEError(f"block '{wrong}' of the converted network has another tile than the plan says")
    image = found.shapes.image
    feeds = feeds_of(original, image, batched(image, image.batch), x, seed)
    # For an input network without tiles this is HxW; for one that had some, those.
    back = convert(converted, find(original, plan.input_size), verify=False)
    expected, got = (_run(m, feeds) for m in (original, back))
    identity = max((relative(a, b) for a, b in zip(expected, got)), default=0.0)
    identity_abs = max((distance(a, b) for a, b in zip(expected, got)), default=0.0)
    blocks = _blocks(original, converted, plan, found.places, feeds)
    return Verification(identity, identity_abs, blocks, operators(original), operators(converted))


def operators(model: OnnxModel) -> dict[str, int]:
    """The operators of a network and how many there are of each, the most frequent first; constants left out."""
    counts = Counter(node.op_type for node in model.ir.graph if node.op_type != "Constant")
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _run(
    model: OnnxModel, feeds: dict[str, np.ndarray], outputs: list[str] | None = None
) -> list[np.ndarray]:
    opened = session(model, optimise=False)
    try:
        return list(opened.run(outputs, feeds))
    except Exception as error:
        raise TiledSEError(f"ONNX Runtime fails on {model.name}: {first_line(error, 200)}") from error


def _blocks(
    original: OnnxModel,
    converted: OnnxModel,
    plan: Plan,
    places: tuple[Place, ...],
    feeds: dict[str, np.ndarray],
) -> dict[str, float]:
    """The relative difference of each block to the reference, on its own input within the converted network."""
    tapped = converted.clone()
    values = ir.convenience.create_value_mapping(tapped.ir.graph)
    names: list[str] = []
    for place in places:
        for value in (place.squeeze.source, place.product.outputs[0]):
            assert value.name is not None
            if value.name not in names:
                names.append(value.name)
    outputs = tapped.ir.graph.outputs
    outputs.extend(values[name] for name in names if not values[name].is_graph_output())
    maps = dict(zip(names, _run(tapped, feeds, names)))
    source = original.clone()
    before = locate(source, plan.input_size)
    result = {}
    for (block, tile), learnt, place, origin in zip(plan, plan.corrections, places, before.places):
        array = maps[place.squeeze.source.name or ""].transpose(0, *place.squeeze.axes)
        x = torch.from_numpy(np.ascontiguousarray(array)).float()
        gates = _excite(source, before, origin, _descriptors(x, tile, learnt))
        expected = scale(x, torch.from_numpy(gates), tile).numpy().transpose(place.layout)
        result[block.name] = relative(expected, maps[place.product.outputs[0].name or ""])
    return result


def _descriptors(x: torch.Tensor, tile: Tile, learnt: Correction | None) -> np.ndarray:
    """Descriptors by the operator in PyTorch."""
    if learnt is None:
        return squeeze(x, tile).numpy()
    given = (learnt.own, learnt.running, learnt.offset)
    own, running, offset = (None if a is None else torch.tensor(a)[:, :, None] for a in given)
    assert own is not None
    assert offset is not None
    return correct(x, tile, (own, running, offset)).numpy()


def _excite(model: OnnxModel, found: Finding, place: Place, descriptors: np.ndarray) -> np.ndarray:
    """The gates of descriptors (N, C, rows, cols), by the excitation as the network before conversion has it.

    It is cut out of that network and run on its own, so that nothing of the conversion takes part. ``model`` is a
    clone: shapes that reshapes take from the map are written into it as numbers.
    """
    excitation, start = place.excitation, place.squeeze.descriptors
    for node in excitation.nodes:
        if node.op_type in ("Reshape", "Expand") and node.inputs[1] not in found.constants:
            shape = found.shapes.of(node.outputs[0])
            assert shape is not None
            name = f"{node.outputs[0].name}/shape"
            value = ir.Value(name=name, const_value=ir.tensor(np.array(shape, np.int64), name=name))
            model.ir.graph.register_initializer(value)
            node.replace_input_with(1, value)
    graph = ir.convenience.extract(model.ir.graph, [start], [excitation.gate])
    dtype = found.shapes.type(start)
    for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
        value.shape = None
        value.dtype = found.shapes.type(value)
    opened = session(OnnxModel(ir.Model(graph, ir_version=model.ir.ir_version)), optimise=False)
    feed, out = graph.inputs[0].name, [graph.outputs[0].name]
    n, channels, rows, cols = descriptors.shape
    flat = descriptors.transpose(0, 2, 3, 1).reshape(-1, channels).astype(dtype.numpy())
    if excitation.in_place:
        gates = opened.run(out, {feed: flat[:, :, None, None]})[0].reshape(flat.shape)
    else:
        # As the file has it, for the batch that it was written for: one descriptor a channel.
        shape = found.shapes.of(start) or ()
        batch = found.shapes.image.batch
        one = [opened.run(out, {feed: np.tile(row, batch).reshape(shape)})[0] for row in flat]
        gates = np.stack([g.reshape(batch, -1)[0] for g in one])
    return gates.astype(np.float32).reshape(n, rows, cols, channels).transpose(0, 3, 1, 2)
