"""Find the SE blocks of a TensorFlow Lite network by the structure of its graph, and say why a near miss is none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..plan import NearMiss, Plan, SEBlock
from ..tile import Tile
from .counting import count
from .excitation import Excitation, ExcitationReader
from .graph import Graph
from .image import Image, sized
from .matching import same_repeat, same_squeeze
from .metadata import Stated, read_stated
from .model import TfliteModel
from .nodes import REPEATS, Miss

_TYPES = {"FLOAT32", "INT8", "UINT8", "INT16"}
# Tensors to look at between a pool and a product.
_FARTHEST = 200
_LAYERS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}


@dataclass(frozen=True)
class Place:
    """Where a block stands in a graph.

    Attributes:
        source: The map.
        descriptors: The tensor of its descriptors.
        squeeze: The operators between the two.
        excitation: Its excitation.
        repeat: The operators between gates and product.
        product: The MUL of map and gates.
        slot: Which input of it the gates are.
        stated: Its tile, what pooled, and what conversion has changed.
    """

    source: int
    descriptors: int
    squeeze: tuple[Any, ...]
    excitation: Excitation
    repeat: tuple[Any, ...]
    product: Any
    slot: int
    stated: Stated


@dataclass(frozen=True)
class Finding:
    """A plan, and where its blocks stand."""

    model: TfliteModel
    graph: Graph
    image: Image
    plan: Plan
    places: tuple[Place, ...]


def locate(model: TfliteModel, input_size: Sequence[int] | None = None) -> Finding:
    """Find the SE blocks of a network.

    Args:
        model: The network.
        input_size: (C, H, W) of an image; needed where the file leaves height or width open.

    Returns:
        A plan in which each block has the tile that it has now. A block is named after the tensor of its descriptors;
        its dialect is ``tflite.SE``, ``tflite.ESE`` for one layer.

    Raises:
        TiledSEError: see ``image.sized``.
    """
    model, image = sized(model, input_size)
    finder = _Finder(Graph(model))
    finder.search()
    graph, blocks = finder.graph, tuple(finder.blocks)
    tiles = tuple(place.stated.tile for place in finder.places)
    learnt = tuple(place.stated.learnt for place in finder.places)
    now = sum((tile.tiles(b.height, b.width) - 1) * b.excite_macs for b, tile in zip(blocks, tiles))
    ours = [op for place in finder.places for op in (*place.squeeze, *place.repeat)]
    network = count(graph, ours)
    network = replace(network, macs=network.macs - now)
    plan = Plan(blocks, tiles, image.size, tuple(finder.misses), network, learnt)
    return Finding(model, graph, image, plan, tuple(finder.places))


def fingerprint(found: Finding) -> str:
    """A name for the weights of a network, the same before and after its conversion.

    It covers the weights of convolutions and dense layers outside SE blocks, which ``convert`` never touches.
    """
    graph = found.graph
    inside = {
        id(op)
        for place in found.places
        for op in (*place.squeeze, *place.excitation.operators, *place.repeat)
    }
    digest = hashlib.sha256()
    for op in graph.operators:
        if graph.kind(op) in _LAYERS and id(op) not in inside and graph.is_constant(int(op.inputs[1])):
            leaf = graph.leaf(int(op.inputs[1]))
            digest.update(f"{graph.type(leaf)} {graph.shape(leaf)}".encode())
            data = graph.tree.buffers[graph.tensors[leaf].buffer].data
            digest.update(b"" if data is None else memoryview(data))
    return digest.hexdigest()[:32]


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.excitations = ExcitationReader(graph)
        self.stated = read_stated(graph.tree)
        self.blocks: list[SEBlock] = []
        self.places: list[Place] = []
        self.misses: list[NearMiss] = []
        self.read: set[int] = set()

    def search(self) -> None:
        """Look at each operator, in order."""
        graph = self.graph
        for op in graph.operators:
            out = int(op.outputs[0]) if len(op.outputs) else -1
            if out < 0 or id(op) in self.read:
                continue
            name = graph.name(out)
            try:
                if name in self.stated and self.note_tiled(name, out):
                    continue
                for tensor in self.whole(op):
                    self.note(name, tensor, op)
            except Miss as miss:
                self.misses.append(NearMiss(name, str(miss), self.gates(op)))
        # What is stated last may be read before: a tile of several pools is named after the tensor that joins them.
        known = {b.name for b in self.blocks}
        self.misses = [m for m in self.misses if m.name not in known]
        for inner in graph.tree.subgraphs[1:]:
            self.note_inner(inner)

    def gates(self, pool: Any) -> bool:
        """Whether a product takes the map that an operator pools, and what is computed from its means."""
        graph, source = self.graph, int(pool.inputs[0])
        waiting, seen = [int(pool.outputs[0])], {int(pool.outputs[0])}
        while waiting and len(seen) < _FARTHEST:
            for user in graph.users.get(waiting.pop(0), []):
                if graph.kind(user) == "MUL" and source in [int(t) for t in user.inputs]:
                    return True
                new = [int(t) for t in user.outputs if int(t) not in seen]
                seen.update(new)
                waiting += new
        return False

    def note_inner(self, inner: Any) -> None:
        """Near misses of graphs under control flow."""
        graph = self.graph
        for op in inner.operators or ():
            if graph.kind(op) in ("MEAN", "AVERAGE_POOL_2D") and op.outputs is not None and len(op.outputs):
                name = inner.tensors[int(op.outputs[0])].name or b""
                self.misses.append(
                    NearMiss(
                        name.decode("utf-8", "replace"),
                        "it lies under control flow (IF, WHILE or a call); such blocks are left alone",
                    )
                )

    def whole(self, op: Any) -> Iterator[int]:
        """The map, where an operator pools the whole of one."""
        graph, kind = self.graph, self.graph.kind(op)
        if kind not in ("MEAN", "AVERAGE_POOL_2D"):
            return
        x = int(op.inputs[0])
        shape = graph.shape(x)
        if len(shape) != 4 or 0 in shape or graph.is_constant(x):
            return
        if kind == "MEAN":
            axes = graph.constant(int(op.inputs[1]))
            if axes is None or {int(a) % 4 for a in axes.reshape(-1)} != {1, 2}:
                return
        else:
            options, out = op.builtinOptions, graph.shape(int(op.outputs[0]))
            if options is None or out[1:3] != (1, 1):
                return
            if options.filterHeight < shape[1] or options.filterWidth < shape[2]:
                return
            if options.fusedActivationFunction:
                raise Miss("its mean goes through an activation within the pool")
        yield x

    def note(self, name: str, x: int, pool: Any) -> None:
        """Note the block of a plain mean.

        Raises:
            Miss: it is none.
        """
        graph = self.graph
        self.check_type(x)
        descriptors = int(pool.outputs[0])
        _, height, width, channels = graph.shape(x)
        excitation = self.excitations.read(descriptors, channels, 1, x)
        product, slot = excitation.user, self.slot(excitation.user, excitation.gate)
        self.check_gate(excitation.gate, channels)
        said = self.stated.get(name)
        tile = Tile(None, None)
        if said is not None and said.tile.effect(height, width) == tile.effect(height, width):
            tile = said.tile
        mean = said.mean if said is not None else None
        stated = Stated(tile, graph.kind(pool), None, mean, {} if said is None else said.biases)
        self.append(name, Place(x, descriptors, (pool,), excitation, (), product, slot, stated))

    def note_tiled(self, name: str, descriptors: int) -> bool:
        """Note a block with tiles, as its file states it; False where it is plain SE.

        Raises:
            Miss: its operators are not those of the tile.
        """
        graph, said = self.graph, self.stated[name]
        shape = graph.shape(descriptors)
        if len(shape) != 4:
            return False
        excitation = self.excitations.read(descriptors, shape[3], shape[1] * shape[2])
        repeat, product = self.repeated(excitation.user)
        operand = int(repeat[-1].outputs[0]) if repeat else excitation.gate
        if graph.kind(product) != "MUL" or operand not in [int(t) for t in product.inputs]:
            raise self.excitations.no_product(product, operand)
        slot = self.slot(product, operand)
        x = int(product.inputs[1 - slot])
        if len(graph.shape(x)) != 4 or 0 in graph.shape(x):
            raise Miss("what is gated is no map of 4 axes")
        _, height, width, _ = graph.shape(x)
        if said.tile.effect(height, width) == ("whole",):
            return False
        if not (
            same_squeeze(graph, x, descriptors, said.tile, said.pool, said.learnt)
            and same_repeat(graph, excitation.gate, operand, said.tile, height, width)
        ):
            raise Miss(
                f"the file says that it has the tile {said.tile}, and its operators are not those of that tile"
            )
        self.check_type(x)
        squeeze = self.between(descriptors, x)
        self.read.update(id(op) for op in squeeze)
        self.append(name, Place(x, descriptors, squeeze, excitation, tuple(repeat), product, slot, said))
        return True

    def append(self, name: str, place: Place) -> None:
        """Note a block."""
        _, height, width, channels = self.graph.shape(place.source)
        excitation = place.excitation
        dialect = "tflite.ESE" if excitation.reduced is None else "tflite.SE"
        block = SEBlock(name, channels, excitation.reduced, height, width, dialect, excitation.macs)
        self.blocks.append(block)
        self.places.append(place)

    def repeated(self, user: Any) -> tuple[list[Any], Any]:
        """The operators that repeat gates, and what takes them then."""
        graph, found = self.graph, list[Any]()
        while graph.kind(user) in REPEATS and len(found) < 12:
            found.append(user)
            users = graph.users.get(int(user.outputs[0]), [])
            if len(users) != 1:
                break
            user = users[0]
        return found, user

    def between(self, tensor: int, source: int) -> tuple[Any, ...]:
        """The operators that compute a tensor from a source, in order."""
        graph, wanted, waiting = self.graph, set[int](), [tensor]
        while waiting:
            here = waiting.pop()
            made = graph.producer.get(here)
            if here != source and made is not None and id(made) not in wanted:
                wanted.add(id(made))
                waiting += [int(t) for t in made.inputs]
        return tuple(op for op in graph.operators if id(op) in wanted)

    def slot(self, product: Any, gate: int) -> int:
        """Which input of a product the gates are.

        Raises:
            Miss: it does not take two values, or the gates twice.
        """
        inputs = [int(t) for t in product.inputs]
        if len(inputs) != 2 or inputs.count(gate) != 1:
            raise self.excitations.no_product(product, gate)
        return inputs.index(gate)

    def check_type(self, x: int) -> None:
        """Refuse maps of types that no tile is written for.

        Raises:
            Miss: which.
        """
        graph = self.graph
        kind = graph.type(x)
        if kind not in _TYPES:
            raise Miss(f"its map is of type {kind}; float32, int8, uint8 and int16 are read")
        quantised = graph.quantised(x)
        if kind != "FLOAT32" and quantised is None:
            raise Miss(f"its map is of type {kind} and has no scale; quantise the network again")
        if quantised is not None and len(quantised.scale) != 1:
            raise Miss("its map has a scale for each channel, and a pool takes one")

    def check_gate(self, gate: int, channels: int) -> None:
        """Check that gates meet the channels of a map.

        Raises:
            Miss: they do not.
        """
        shape = self.graph.shape(gate)
        if shape and shape[-1] != channels and channels > 1:
            raise Miss(f"its gates, of shape {shape}, do not lie along the channels of the map")
