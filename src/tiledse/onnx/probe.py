"""Probe: one ONNX session in which the row strips of every SE block are inputs.

Choosing tiles runs a network with hundreds of plans. Converting and opening it for each takes longer than running it,
so here it is converted once, to ``1xW``, and the descriptors of rows are multiplied by a matrix (H, H) that is fed: row
i of the matrix says which rows the gate of row i is computed from (``Tile.weights``). Every strip of rows is such a
matrix, whatever rows it sees, and so are ``upper`` and ``middle``; a correction is two, and numbers beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from ..correction import Correction
from ..errors import TiledSEError, first_line
from ..plan import Plan, SEBlock
from ..tile import Tile
from .converter import convert_verified
from .emit import Writer
from .finder import locate
from .model import OnnxModel
from .runner import session

Feeds = dict[str, np.ndarray]


class Matrices(NamedTuple):
    """What the gates of a block's rows are computed from, in units of row means.

    ``descriptor of row i = scale[:, i] * (own[i] @ rows) + scale_seen[:, i] * (seen[i] @ rows) + offset[:, i]``

    Args:
        own: (H, H), rows of weights that sum to 1.
        seen: (H, H), likewise.
        scale: (C, H, 1).
        scale_seen: (C, H, 1).
        offset: (C, H, 1).
    """

    own: np.ndarray
    seen: np.ndarray
    scale: np.ndarray
    scale_seen: np.ndarray
    offset: np.ndarray


def matrices(block: SEBlock, tile: Tile, correction: Correction | None) -> Matrices:
    """The matrices of one block's tile.

    Raises:
        TiledSEError: the tile is no strip of rows.

    Example:
        >>> block = SEBlock("se", 1, 1, 3, 9, "onnx.SE")
        >>> matrices(block, Tile.parse("2xW:running"), None).seen.round(2).tolist()
        [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.33, 0.33, 0.33]]
    """
    if tile.width is not None:
        raise TiledSEError(
            f"tile {tile}: expected strips of rows, kxW, or HxW; columns and patches hold whole rows"
        )
    height = block.height
    strip = np.arange(height) // tile.scaled(height, 1)[0]
    seen, flat = tile.weights(height)[strip], (block.channels, height, 1)
    ones, zeros = np.ones(flat, np.float32), np.zeros(flat, np.float32)
    if correction is None:
        return Matrices(seen, seen, ones, zeros, zeros)
    own = tile.own_weights(height)[strip]
    of_seen = zeros if correction.running is None else correction.running[:, strip, None]
    return Matrices(own, seen, correction.own[:, strip, None], of_seen, correction.offset[:, strip, None])


class Probe:
    """A network opened once for every plan of row strips.

    Args:
        model: The network.
        plan: Its blocks, at the size of its images.
        threads: Of ONNX Runtime.
    """

    def __init__(self, model: OnnxModel, plan: Plan, threads: int = 1) -> None:
        made = convert_verified(model, plan.with_tile("1xW"), fix_size=True)
        if made.refused:
            miss = made.refused[0]
            raise TiledSEError(f"block '{miss.name}' cannot be tiled: {miss.reason}")
        probe = made.model
        found = locate(probe, plan.input_size)
        graph = probe.ir.graph
        taken = set(ir.convenience.create_value_mapping(graph))
        taken.update(node.name for node in graph.all_nodes() if node.name)
        self.plan = plan
        self.image = found.shapes.image
        self.outputs = [value.name or "" for value in graph.outputs]
        self.types: list[np.dtype] = []
        for number, place in enumerate(found.places):
            block, rows = plan.blocks[number], place.squeeze.descriptors
            users = list(rows.uses())
            writer = Writer(
                probe.ir, users[0].node, f"probe/{number}", found.shapes.type(place.squeeze.source), taken
            )
            for node in graph:  # before the first of the users
                if any(use.node is node for use in users):
                    writer.before = node
                    break
            h, c = block.height, block.channels
            own, seen = (self._input(graph, writer, number, what, (h, h)) for what in ("own", "seen"))
            scale, scale_seen, offset = (
                self._input(graph, writer, number, what, (c, h, 1))
                for what in ("scale", "scale_seen", "offset")
            )
            first = writer.node("Mul", [writer.node("MatMul", [own, rows]), scale])
            second = writer.node("Mul", [writer.node("MatMul", [seen, rows]), scale_seen])
            total = writer.node("Add", [writer.node("Add", [first, second]), offset])
            for use in users:
                use.node.replace_input_with(use.idx, total)
            shown = writer.node("Identity", [rows], "rows", dtype=rows.dtype)
            shown.name, shown.shape = f"probe/{number}/rows", ir.Shape([None, c, h, 1])
            shown.dtype = writer.dtype
            graph.outputs.append(shown)
            self.types.append(writer.dtype.numpy())
        self.name = model.name
        self._model, self._threads = probe, threads
        self._sessions: dict[tuple[tuple[str, ...], tuple[str, ...]], ort.InferenceSession] = {}
        self._cuts: dict[int, _Cut] = {}
        value = next(v for v in graph.inputs if v.name == self.image.name)
        self.type = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        batch = value.shape[0] if value.shape is not None else None
        self._step = batch if isinstance(batch, int) and batch > 0 else None

    @staticmethod
    def _input(graph: ir.Graph, writer: Writer, number: int, what: str, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(
            name=f"probe/{number}/{what}", shape=ir.Shape(shape), type=ir.TensorType(writer.dtype)
        )
        graph.inputs.append(value)
        return value

    def feeds(self, plan: Plan) -> Feeds:
        """The inputs that stand for the tiles and corrections of a plan."""
        given = {}
        for number, ((block, tile), correction) in enumerate(zip(plan, plan.corrections)):
            for what, array in matrices(block, tile, correction)._asdict().items():
                given[f"probe/{number}/{what}"] = array.astype(self.types[number])
        return given

    def run(self, images: np.ndarray, feeds: Feeds, outputs: Sequence[str]) -> list[np.ndarray]:
        """Named outputs; only what they need is run."""
        parts = [list(self._run(part, feeds, outputs).values()) for part in self._parts(images)]
        return [np.concatenate(each) for each in zip(*parts)]

    def run_forms(
        self, images: np.ndarray, feeds: Sequence[Feeds], firsts: Sequence[int | None]
    ) -> list[list[np.ndarray]]:
        """All outputs of the SE network, then with each of some feeds; what comes before the first tiles runs once.

        Args:
            images: (N, C, H, W).
            feeds: Of each form.
            firsts: For each form, the number of its first block with tiles; None where it has none.
        """
        se = self.feeds(self.plan)
        cuts = {first: self._cut(first) for first in firsts if first is not None}
        crossing = dict.fromkeys(
            name for cut in cuts.values() for name in cut.taken if name != self.image.name
        )
        forms: list[list[list[np.ndarray]]] = [[] for _ in range(len(feeds) + 1)]
        for part in self._parts(images):
            known = {
                **self._run(part, se, list(dict.fromkeys([*self.outputs, *crossing]))),
                self.image.name: part,
            }
            forms[0].append([known[name] for name in self.outputs])
            for form, fed, first in zip(forms[1:], feeds, firsts, strict=True):
                if first is None:
                    got = known
                else:
                    cut = cuts[first]
                    given = {name: known[name] for name in cut.taken}
                    got = {**known, **self._run(part, fed, cut.outputs, given)}
                form.append([got[name] for name in self.outputs])
        return [[np.concatenate(each) for each in zip(*form)] for form in forms]

    def _parts(self, images: np.ndarray) -> list[np.ndarray]:
        """Images in batches that the network takes."""
        images, step = images.astype(self.type), self._step or len(images)
        return [images[at : at + step] for at in range(0, len(images), step)]

    def _run(
        self, images: np.ndarray, feeds: Feeds, outputs: Sequence[str], given: Feeds | None = None
    ) -> dict[str, np.ndarray]:
        """Named outputs, from the images or from values in the middle of the network."""
        opened = self._open(tuple(outputs), given or {})
        fed = {self.image.name: images, **feeds, **(given or {})}
        taken = {i.name: fed[i.name] for i in opened.get_inputs()}
        try:
            return dict(zip(outputs, opened.run(list(outputs), taken)))
        except Exception as error:
            raise TiledSEError(
                f"{self.name} fails on a batch of {images.shape}: {first_line(error, 140)}"
            ) from error

    def _cut(self, block: int) -> _Cut:
        """Where a form whose first tiles are in this block leaves the SE network."""
        if block not in self._cuts:
            self._cuts[block] = _cut(self._model.ir.graph, self.image.name, self.outputs, block)
        return self._cuts[block]

    def _open(self, outputs: tuple[str, ...], given: Feeds) -> ort.InferenceSession:
        """A session of what some outputs need; ONNX Runtime runs all nodes of a session."""
        key = (outputs, tuple(given))
        if key not in self._sessions:
            whole = self._model.clone()
            values = ir.convenience.create_value_mapping(whole.ir.graph)
            keep, starts = [values[name] for name in outputs], [values[name] for name in given]
            for start in starts:
                if not start.is_graph_input():
                    start.shape, start.dtype = None, ir.DataType.from_numpy(given[start.name or ""].dtype)
            inputs = _needed(keep, starts)
            fed = [v for v in whole.ir.graph.inputs if v in inputs and v not in starts]
            cut = ir.convenience.extract(whole.ir.graph, [*fed, *starts], list(outputs))
            cut_model = ir.Model(
                cut, ir_version=whole.ir.ir_version, functions=list(whole.ir.functions.values())
            )
            self._sessions[key] = session(OnnxModel(cut_model, self._model.path), threads=self._threads)
        return self._sessions[key]

    def rows(self, images: np.ndarray, feeds: Feeds, blocks: Sequence[int]) -> list[np.ndarray]:
        """Row means (N, C, H) of the maps of some blocks."""
        means = self.run(images, feeds, [f"probe/{number}/rows" for number in blocks])
        return [each[..., 0].astype(np.float32) for each in means]


class _Cut(NamedTuple):
    """Where a form leaves the SE network: what it takes from before, and the outputs that come after."""

    taken: list[str]
    outputs: list[str]


def _cut(graph: ir.Graph, image: str, outputs: Sequence[str], block: int) -> _Cut:
    """Cut a probe at the descriptors of a block.

    Values that depend on no image are no part of what is taken: they come along. A graph with graphs in it, whose nodes
    take values that they do not name, is not cut.
    """
    changed = {
        v
        for v in graph.inputs
        if (v.name or "").startswith("probe/") and int((v.name or "").split("/")[1]) >= block
    }
    moving = {v for v in graph.inputs if v.name == image} | changed
    taken: dict[str, None] = {}
    for node in graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return _Cut([image], list(outputs))
        inputs = [value for value in node.inputs if value is not None]
        if any(value in moving for value in inputs):
            moving.update(node.outputs)
        if any(value in changed for value in inputs):
            changed.update(node.outputs)
            taken |= dict.fromkeys(v.name or "" for v in inputs if v in moving and v not in changed)
    names = {value.name for value in changed}
    return _Cut(list(taken), [name for name in outputs if name in names])


def _needed(values: Sequence[ir.Value], starts: Sequence[ir.Value] = ()) -> set[ir.Value]:
    """All values that some values are computed from, and they themselves; nothing before ``starts`` is."""
    seen, waiting = set(values), list(values)
    while waiting:
        value = waiting.pop()
        node = None if value in starts else value.producer()
        for other in () if node is None else node.inputs:
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen
