"""Find the SE blocks of an ONNX network by the structure of its graph, and say of every near miss why it is none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from ..correction import Correction
from ..plan import NearMiss, Plan, SEBlock
from ..refusing import partial_mean
from ..tile import Tile
from .coming_back import gates_its_map
from .constants import Constants
from .counting import count
from .excitation import Excitation, ExcitationReader
from .frames import FrameReader
from .lifting import sides
from .metadata import TARGET_KEY, WEIGHTS_KEY, stated_tiles
from .model import OnnxModel
from .nodes import Miss, ints
from .product import ProductReader
from .scales import check_scales, quantised
from .shapes import Shapes, shapes_of
from .squeeze import Squeeze, SqueezeReader

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Place:
    """Where a block stands in a graph.

    Attributes:
        squeeze: Its squeeze.
        excitation: Its excitation.
        product: The Mul of map and gates.
        slot: Which input of ``product`` the gates are.
        layout: For each axis of the gated map, which of (N, C, H, W) it is.
    """

    squeeze: Squeeze
    excitation: Excitation
    product: ir.Node
    slot: int
    layout: tuple[int, int, int, int]


@dataclass(frozen=True)
class Finding:
    """A plan, and where its blocks stand."""

    plan: Plan
    places: tuple[Place, ...]
    shapes: Shapes
    constants: Constants


def find(model: OnnxModel, input_size: Sequence[int] | None = None) -> Plan:
    """Find the SE blocks of an ONNX network.

    Args:
        model: The network.
        input_size: (C, H, W) of an image; needed where the file leaves height or width free.

    Returns:
        A plan in which each block has the tile that it has now. A block is named after the node that pools.
        Its dialect is ``onnx.SE``, ``onnx.ESE`` for one layer, with ``.nhwc`` where the map has its channels last.

    Raises:
        TiledSEError: the network has no image input, or no size is known, or it fails on that size.
    """
    return locate(model, input_size).plan


def locate(
    model: OnnxModel, input_size: Sequence[int] | None = None, shapes: Shapes | None = None
) -> Finding:
    """``find``, with the places of the blocks in the graph; ``shapes`` are its shapes, where they are known."""
    shapes = shapes_of(model, input_size) if shapes is None else shapes
    constants = Constants(model.ir)
    finder = _Finder(model, shapes, constants)
    finder.search()
    blocks = tuple(finder.blocks)
    # A graph computes the gates of a first frame at every frame.
    now = sum(
        (tile.first.tiles(b.height, b.width) - 1) * b.excite_macs for b, tile in zip(blocks, finder.tiles)
    )
    means = {node for place in finder.places for node in place.squeeze.nodes(model.ir)}
    network = count(model, shapes, constants, means)
    plan = Plan(
        blocks, tuple(finder.tiles), shapes.image.size, tuple(finder.misses), replace(network, macs=network.macs - now),
        tuple(finder.corrections),
    )  # fmt: skip
    return Finding(plan, tuple(finder.places), shapes, constants)


def weights_of(model: OnnxModel, input_size: Sequence[int] | None = None) -> str:
    """The ``fingerprint`` of a network."""
    return fingerprint(locate(model, input_size), model)


def fingerprint(found: Finding, model: OnnxModel) -> str:
    """A name for the weights of a network, the same before and after its conversion.

    It covers the weights of convolutions and matrix products outside SE blocks, which ``convert`` never touches.
    """
    inside = {node for place in found.places for node in place.excitation.nodes}
    inside |= {node for place in found.places for node in place.squeeze.nodes(model.ir)}
    digest = hashlib.sha256()
    for node in model.ir.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node not in inside:
            for value in node.inputs:
                if value in found.constants:
                    tensor = found.constants.leaf(value).const_value  # type: ignore[arg-type]
                    if tensor is not None:
                        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                        digest.update(tensor.tobytes())
    return digest.hexdigest()[:32]


class _Finder:
    def __init__(self, model: OnnxModel, shapes: Shapes, constants: Constants) -> None:
        self.model = model
        self.shapes = shapes
        self.constants = constants
        self.stated = stated_tiles(model.ir)
        self.squeezes = SqueezeReader(constants, shapes, FrameReader(constants, model.ir, self.stated))
        self.excitations = ExcitationReader(constants, shapes)
        self.products = ProductReader(constants, shapes, self.squeezes.views)
        self.names = Counter(node.name for node in model.ir.graph)
        self.blocks: list[SEBlock] = []
        self.tiles: list[Tile] = []
        self.corrections: list[Correction | None] = []
        self.places: list[Place] = []
        self.misses: list[NearMiss] = []

    def search(self) -> None:
        for node in self.model.ir.graph:
            name = self.name(node)
            if node.op_type == "Identity" and (
                name not in self.stated or self.stated[name].tile != Tile(1, 1)
            ):
                continue  # nothing pools here: 1x1 tiles are read where the file says that they are
            if node.domain not in ("", "ai.onnx") and "AveragePool" in node.op_type:
                reason = (
                    f"it is pooled by {node.op_type} of {node.domain}, which is no operator of ONNX; quantise in pairs "
                    "of QuantizeLinear and DequantizeLinear (QDQ), or take the file from before"
                )
                self.misses.append(NearMiss(name, reason, self.gates(node, None)))
                continue
            squeeze = None
            try:
                squeeze = self.squeezes.read(node)
                if squeeze is not None:
                    self.note(name, squeeze)
            except Miss as miss:
                self.misses.append(NearMiss(name, str(miss), self.gates(node, squeeze)))
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    self.note_inner(node, attribute.as_graph())
        self.note_target_forms()
        for node in self.model.ir.graph:
            if node.op_type in ("Mul", "Einsum"):
                self.note_unread(node)
                self.note_part(node)
        for function in self.model.ir.functions.values():
            for node in function:
                if self.pools_blindly(node):
                    reason = (
                        f"it lies in the function '{function.name}'; inline the functions of the file first"
                    )
                    self.misses.append(NearMiss(f"{function.name}/{node.name}", reason))

    def note_target_forms(self) -> None:
        """Say of blocks that were written for a target, and are not read back, that this is so."""
        target = self.model.ir.metadata_props.get(TARGET_KEY)
        found = {block.name for block in self.blocks}
        for name, (tile, _) in self.stated.items() if target is not None else ():
            if name not in found:
                own = f"{name}/"  # what its nodes are called
                self.misses = [m for m in self.misses if m.name != name and not m.name.startswith(own)]
                reason = (
                    f"its tile {tile} is written in the form of target '{target}', which is not read back; give the "
                    "file that it was made from"
                )
                self.misses.append(NearMiss(name, reason, gates=True))

    def note_unread(self, product: ir.Node) -> None:
        """Note a product of a map and one number a channel that comes of this map in a way that nobody read."""
        if any(product is place.product for place in self.places) or len(product.inputs) != 2:
            return
        told = {*(b.name for b in self.blocks), *(m.name for m in self.misses)}
        for x, gate in (tuple(product.inputs), tuple(product.inputs)[::-1]):
            while gate is not None and (node := gate.producer()) is not None and node.op_type == "Expand":
                gate = node.inputs[0]
            shape, own = self.shapes.of(x), self.shapes.of(gate)
            if x is None or gate is None or shape is None or own is None or not 3 <= len(shape) <= 5:
                continue
            if product.op_type == "Einsum" and own == shape[:2]:
                own = (*own, *(1,) * (len(shape) - 2))
            if len(own) > len(shape):
                continue
            own, ones = (1,) * (len(shape) - len(own)) + own, (1,) * (len(shape) - 2)
            if own[1:] not in ((shape[1], *ones), (*ones, shape[-1])) or max(own[1:]) == 1 or own == shape:
                continue
            path = self._path(gate, self.squeezes.views.trace(x).root)
            names = [self.name(node) for node in path]
            if not path or told & set(names):
                continue
            pool = next((n for n in path if self._shrinks(n, own)), path[-1])
            ops = (
                " and ".join(dict.fromkeys(n.op_type for n in path if self._shrinks(n, own))) or pool.op_type
            )
            reason = (
                f"its map is pooled by {ops}, which is not read as a mean over rows and columns; expected "
                "GlobalAveragePool, ReduceMean, or AveragePool as large as the map"
            )
            self.misses.append(NearMiss(self.name(pool), reason, gates=True))

    def note_part(self, product: ir.Node) -> None:
        """Note a product of a map and means over some of its axes: a gate for each frequency, say, or each frame."""
        if any(product is place.product for place in self.places) or len(product.inputs) != 2:
            return
        told = {*(b.name for b in self.blocks), *(m.name for m in self.misses)}
        for x, gate in (tuple(product.inputs), tuple(product.inputs)[::-1]):
            shape, own = self.shapes.of(x), self.shapes.of(gate)
            if x is None or gate is None or shape is None or own is None or len(own) != len(shape):
                continue
            view = self.squeezes.views.trace(x) if len(shape) == 4 else None
            channels = 1 if view is None or 1 not in view.axes else view.axes.index(1)
            sides = [axis for axis in range(1, len(shape)) if axis != channels]
            over = {axis for axis in sides if own[axis] == 1 < shape[axis]}
            each = [axis for axis in sides if own[axis] == shape[axis] > 1]
            if len(shape) not in (4, 5) or not over or not each or not own[channels] == shape[channels] > 1:
                continue
            root = x if view is None else view.root
            path = self._path(gate, root)
            pools = [
                n for n in path
                if n.op_type in ("ReduceMean", "AveragePool") and self._shrinks(n, own) and self._pools(n, root)
            ]  # fmt: skip
            if pools and not told & {self.name(node) for node in path}:
                self.misses.append(NearMiss(self.name(pools[0]), partial_mean(over, len(shape)), gates=True))

    def _pools(self, node: ir.Node, root: ir.Value) -> bool:
        """Whether a node pools a map itself: a norm pools squares of it, or distances from its mean."""
        value = node.inputs[0]
        return value is root or (value is not None and self.squeezes.views.trace(value).root is root)

    def _path(self, value: ir.Value, root: ir.Value) -> list[ir.Node]:
        """The nodes between a map and what comes of it, the last first; empty where it does not come of it."""
        came: dict[ir.Value, ir.Node | None] = {value: None}
        waiting, steps = [value], 0
        while waiting and steps < 400:
            steps += 1
            here = waiting.pop(0)
            if here is root:
                path, after = [], came[here]
                while after is not None:
                    path.append(after)
                    after = next(came[v] for v in after.outputs if v in came)
                return path
            node = here.producer()
            for before in () if node is None or node.op_type == "Shape" else node.inputs:
                if before is not None and before not in came and before not in self.constants:
                    came[before] = node
                    waiting.append(before)
        return []

    def _shrinks(self, node: ir.Node, gate: tuple[int, ...]) -> bool:
        """Whether a node takes more than one number a channel and gives fewer."""
        sizes = [
            prod(s) for v in node.inputs if v not in self.constants and (s := self.shapes.of(v)) is not None
        ]
        out = self.shapes.of(node.outputs[0])
        return bool(sizes) and out is not None and max(sizes) > prod(gate) and prod(out) < max(sizes)

    def name(self, node: ir.Node) -> str:
        """The node's name, or that of its output where nodes have none, or share one.

        In a target's form it is the block's, whichever of the pools written for it is the one that is read.
        """
        own = node.name
        name = own if own and self.names[own] == 1 else node.outputs[0].name or ""
        if TARGET_KEY in self.model.ir.metadata_props and name not in self.stated:
            return next((block for block in self.stated if name.startswith(f"{block}/")), name)
        return name

    def gates(self, pool: ir.Node, squeeze: Squeeze | None) -> bool:
        """Whether what a node pools gates the map that it pools, as far as the squeeze was read."""
        if squeeze is not None:
            return gates_its_map(squeeze.descriptors, squeeze.source)
        return pool.inputs[0] is not None and gates_its_map(pool.outputs[0], pool.inputs[0])

    def note_inner(self, owner: ir.Node, graph: ir.Graph) -> None:
        for node in graph.all_nodes():
            if self.pools_blindly(node):
                reason = (
                    f"it lies within {owner.op_type} '{owner.name}'; blocks under control flow are left alone"
                )
                self.misses.append(NearMiss(node.name or node.outputs[0].name or "", reason))

    def pools_blindly(self, node: ir.Node) -> bool:
        """Whether a node of unknown shapes may pool a map."""
        if node.op_type == "ReduceMean":
            return set(ints(node, "axes", ()) or self.constants.ints(_second(node)) or ()) in (
                {2, 3}, {1, 2}, {-1, -2}, {-2, -3},
            )  # fmt: skip
        return node.op_type in ("GlobalAveragePool", "GlobalMaxPool")

    def note(self, name: str, squeeze: Squeeze) -> None:
        try:
            place = self.place(squeeze)
        except Miss:
            # A pool over tiles that ends in no product is a layer like others, no near miss.
            if squeeze.tile.whole or squeeze.crop is not None:
                raise
            return
        shape = self.shapes.of(squeeze.source)
        assert shape is not None
        channels, height, width = (shape[a] for a in squeeze.axes)
        tile = squeeze.tile
        stated = self.stated.get(name)
        if stated is not None and effect(stated.tile, height, width) == effect(tile, height, width):
            tile = stated.tile
        excitation = place.excitation
        dialect = "onnx.ESE" if excitation.reduced is None else "onnx.SE"
        if place.layout[3] == 1:
            dialect += ".nhwc"
        before = None if (view := squeeze.source.producer()) is None else view.inputs[0]
        own = sides(squeeze.source, self.shapes.of(before), self.constants) or ()
        block = SEBlock(
            name, channels, excitation.reduced, height, width, dialect, excitation.macs, sides=own
        )
        tile = tile.on(block.axes)
        self.blocks.append(block)
        self.tiles.append(tile)
        learnt = squeeze.learnt
        weights = self.model.ir.metadata_props.get(WEIGHTS_KEY, "")
        self.corrections.append(None if learnt is None else Correction(*learnt, height, weights, tile))
        self.places.append(place)

    def place(self, squeeze: Squeeze) -> Place:
        """Where the block of a squeeze ends.

        Raises:
            Miss: it is no SE block; why.
        """
        shape = self.shapes.of(squeeze.source)
        if shape is None or len(shape) != 4:
            raise Miss(f"the shape of the map '{squeeze.source.name}' cannot be inferred")
        kind = self.shapes.type(squeeze.source)
        if kind not in _FLOATS:
            raise Miss(f"its map is of type {kind.name.lower()}, for which ONNX Runtime cannot pool")
        ended: dict[ir.Node, tuple[ir.Node, int, tuple[int, ...]]] = {}

        def ends(node: ir.Node) -> bool:
            end = self.products.read(node, squeeze, shape)
            if end is not None:
                ended[node] = end
            return end is not None

        plain = squeeze.plain
        excitation = self.excitations.read(squeeze.descriptors, shape[squeeze.axes[0]], plain, ends)
        product, slot, layout = ended[excitation.user]
        if product is excitation.user:
            self.products.check_gate(excitation.gate, layout, shape[squeeze.axes[0]])
        place = Place(squeeze, excitation, product, slot, layout)  # type: ignore[arg-type]
        if quantised(place):
            check_scales(place, self.constants)
        return place


def effect(tile: Tile, height: int, width: int) -> tuple[object, ...]:
    """What a tile does to a map of one size; equal for tiles that do the same there."""
    return tile.effect(height, width)


def _second(node: ir.Node) -> ir.Value | None:
    return node.inputs[1] if len(node.inputs) > 1 else None
