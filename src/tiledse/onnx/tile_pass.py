"""Put the tiles of a plan into a graph: squeeze and repetition of each block that changes, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..correction import Correction
from ..documents import write_json
from ..plan import Plan
from ..targets import Target
from ..tile import Tile
from . import frames, states
from .constants import Constants
from .emit import Sides, Writer, covers
from .excitation import DENSE, RESHAPES, Excitation
from .finder import Finding, Place, effect
from .metadata import METADATA_KEY, TARGET_KEY, WEIGHTS_KEY, Stated, stated_tiles
from .nodes import integer
from .scales import scale_of_gates
from .shapes import Shapes
from .squeeze import WHOLE
from .target_writer import TargetWriter, takes_whole


class TilePass(ir.passes.InPlacePass):
    """Puts the tiles of a plan into a graph.

    Args:
        plan: The plan.
        found: Where its blocks stand in this very graph.
        forced: Take all maps for free in size, so that a tile larger than the map is tiled as well.
        target: What the form is for; None for ONNX Runtime.
        left: Blocks that stay as they are, whatever the target wants.
    """

    def __init__(
        self, plan: Plan, found: Finding, forced: bool = False, target: Target | None = None,
        left: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        super().__init__()
        self.left = left
        self.target = None if target is None or target.plain else target
        self.plan = plan
        self.found = found
        self.forced = forced

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the blocks whose tile changes."""
        self.taken = set(ir.convenience.create_value_mapping(model.graph))
        self.taken.update(node.name for node in model.graph.all_nodes() if node.name)
        before_this = stated_tiles(model)
        self.states = list(states.states_of(model))
        changed, entries = False, dict[str, Stated]()
        given = zip(self.plan, self.plan.corrections, self.found.plan.corrections)
        for ((block, tile), learnt, before), now, place in zip(
            given, self.found.plan.tiles, self.found.places
        ):
            pool = before_this[block.name].pool if block.name in before_this else place.squeeze.node.op_type
            entries[block.name] = Stated(tile, pool)
            changes = learnt != before or (tile != now and not self.same(place, tile, now))
            if changes or (block.name not in self.left and self.reforms(place, tile)):
                self.rewrite(model, place, block.name, tile, pool, learnt)
                changed = True
        model.metadata_props.pop(METADATA_KEY, None)
        model.metadata_props.pop(WEIGHTS_KEY, None)
        if self.plan.calibrated:
            model.metadata_props[WEIGHTS_KEY] = next(
                c.weights for c in self.plan.corrections if c is not None
            )
        # A target's form of plain SE is stated as well: it is not always read back.
        stated = self.target is not None
        tiled = {name: (str(tile), pool) for name, (tile, pool) in entries.items() if stated or tile != WHOLE}
        states.write_states(model, self.states)
        model.metadata_props.pop(TARGET_KEY, None)
        if self.target is not None:
            model.metadata_props[TARGET_KEY] = self.target.name
        if tiled:
            model.metadata_props[METADATA_KEY] = write_json(tiled)
        return ir.passes.PassResult(model, changed or bool(tiled))

    def same(self, place: Place, a: Tile, b: Tile) -> bool:
        """Whether two tiles do the same to the map of a block, at every size that it can have."""
        fixed = sizes = self.fixed(place)
        if (a.squeeze == "two-step") != (b.squeeze == "two-step"):
            return False  # the same numbers in another form
        if covers(a, fixed) and covers(b, fixed):
            return True
        return None not in sizes and effect(a, *sizes) == effect(b, *sizes)  # type: ignore[arg-type]

    def reforms(self, place: Place, tile: Tile) -> bool:
        """Whether the target wants a block written in another way than it stands there, whatever its tile."""
        if self.target is None:
            return False
        height, width = self.fixed(place)
        assert height is not None
        assert width is not None
        return not covers(tile, (height, width)) or not takes_whole(self.target, height, width)

    def writer(self, model: ir.Model, before: ir.Node, name: str, dtype: ir.DataType, place: Place) -> Writer:
        """What writes the nodes of a block before one node."""
        if self.target is None:
            return Writer(model, before, name, dtype, self.taken)
        shape = self.found.shapes.of(place.squeeze.source)
        assert shape is not None
        channels = shape[place.squeeze.axes[0]]
        return TargetWriter(model, before, name, dtype, self.taken, self.target, channels)

    def fixed(self, place: Place) -> Sides:
        """Rows and columns of a block's map; None where they are free."""
        if self.forced:
            return None, None
        _, rows, cols = place.squeeze.axes
        source, shapes = place.squeeze.source, self.found.shapes
        return shapes.fixed(source, rows), shapes.fixed(source, cols)

    def rewrite(
        self, model: ir.Model, place: Place, name: str, tile: Tile, pool: str, learnt: Correction | None
    ) -> None:
        """Replace squeeze and repetition of one block, and its excitation where it cannot take a grid."""
        squeeze, excitation, shapes = place.squeeze, place.excitation, self.found.shapes
        old = squeeze.descriptors
        if tile.effect(*self.sides(place)) == ("whole",) and tile.previous:
            tile = WHOLE  # a strip that sees all rows needs no frame before it
        pooled = squeeze.node.inputs[0]
        assert pooled is not None
        dtype = shapes.type(pooled)  # not always that of the map: half precision is often averaged in single
        fixed = self.fixed(place)
        producer = old.producer()
        assert producer is not None
        doomed = [producer, *excitation.nodes, excitation.user, *self.between(excitation, place)]
        writer = self.writer(model, producer, name, dtype, place)
        x = squeeze.source
        if shapes.type(x) != dtype:
            x = writer.node("Cast", [x], to=int(dtype))
        if tile.previous:
            size = self.sides(place, 0)
            descriptors, named, state = frames.write(
                writer, x, squeeze.axes, tile, size, self.batch(model), fixed[0] is None
            )
            self.states.append(state)
            tile = tile.first  # what the gates of its grid are repeated over
        else:
            descriptors, named = writer.squeeze(x, squeeze.axes, tile, fixed, pool, learnt)
        writer = self.writer(model, place.product, name, shapes.type(excitation.gate), place)
        if excitation.in_place:
            old.replace_all_uses_with(descriptors)
            gates = excitation.gate
            for node in excitation.nodes:
                for value in node.outputs:
                    value.shape = None  # they now hold one value a tile
            doomed = [n for n in doomed if n not in excitation.nodes]
        else:
            gates = _rebuild(writer, descriptors, excitation, shapes, self.found.constants)
        if isinstance(writer, TargetWriter) and writer.slices(tile, fixed):
            other = place.product.inputs[1 - place.slot]
            assert other is not None
            made = writer.gated(gates, other, tile, fixed, place.layout, place.slot)
            _take_over(model.graph, place.product.outputs[0], made)
            doomed.append(place.product)
        else:
            repeated = writer.repeat(gates, squeeze.source, squeeze.axes, tile, fixed, place.layout)
            steps = scale_of_gates(place)
            if steps is not None and repeated is not gates:
                repeated = _requantise(writer, repeated, steps)
            place.product.replace_input_with(place.slot, repeated)
            doomed = [n for n in doomed if n is not place.product]
        _remove(model.graph, doomed)
        if squeeze.state is not None:
            frames.remove(model, squeeze.state)
            self.states = [s for s in self.states if s.output != squeeze.state.output]
        if old.producer() is None or old.producer().graph is None:  # type: ignore[union-attr]
            descriptors.name = old.name
        named.name = name

    def sides(self, place: Place, first: int = 1) -> tuple[int, int]:
        """Rows and columns of a block's map, or, from 0 on, channels and rows; at the size of the plan."""
        shape = self.found.shapes.of(place.squeeze.source)
        assert shape is not None
        a, b = (shape[axis] for axis in place.squeeze.axes[first : first + 2])
        return a, b

    def batch(self, model: ir.Model) -> int | ir.SymbolicDim:
        """The first side of the image input."""
        name = self.found.shapes.image.name
        shape = next(v.shape for v in model.graph.inputs if v.name == name)
        assert shape is not None
        return shape[0]

    def between(self, excitation: Excitation, place: Place) -> list[ir.Node]:
        """The nodes from the end of the excitation to the product, which repeat the gates."""
        nodes, node = [], excitation.user
        while node is not place.product:
            nodes.append(node)
            node = next(iter(node.outputs[0].uses())).node
        return nodes


def _requantise(writer: Writer, value: ir.Value, steps: tuple[ir.Value | None, ...]) -> ir.Value:
    """Quantise gates that were repeated, and back: the product takes integers as it did."""
    zero = steps[1] if len(steps) > 1 else None
    kind = ir.DataType.UINT8 if zero is None else zero.dtype
    there = writer.node("QuantizeLinear", [value, *steps], dtype=kind)
    return writer.node("DequantizeLinear", [there, *steps])


def _take_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Put a value in the place of another, under its name."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.shape = old.shape
    old.name, new.name = f"{name}/before", name


def _rebuild(
    writer: Writer, descriptors: ir.Value, excitation: Excitation, shapes: Shapes, constants: Constants
) -> ir.Value:
    """Write an excitation of one descriptor a channel again, with 1x1 convolutions, for a grid of them."""
    start = {v for node in excitation.nodes for v in node.inputs if v is not None and v not in constants}
    start -= {v for node in excitation.nodes for v in node.outputs}
    new: dict[ir.Value, ir.Value] = dict.fromkeys(start, descriptors)
    for node in excitation.nodes:
        out = node.outputs[0]
        if node.op_type in RESHAPES:
            assert node.inputs[0] is not None
            new[out] = new[node.inputs[0]]
        elif node.op_type in DENSE:
            new[out] = _dense(writer, node, new, constants)
        else:
            inputs = [
                v
                if v is None
                else new[v]
                if v in new
                else _operand(writer, v, constants, node.op_type in ("BatchNormalization",))
                for v in node.inputs
            ]
            attributes = {a.name: a for a in node.attributes.values()}
            new[out] = writer.node(
                node.op_type, inputs, node.name or node.op_type, shapes.type(out), **attributes
            )
    return new[excitation.gate]


def _dense(writer: Writer, node: ir.Node, new: dict[ir.Value, ir.Value], constants: Constants) -> ir.Value:
    """A dense layer as a 1x1 convolution."""
    weight = next(v for v in node.inputs if v is not None and v in constants)
    array = constants.array(weight)
    assert array is not None
    if node.op_type == "Conv":
        array = array.reshape(array.shape[:2])
    elif node.op_type == "Gemm":
        array = (array if integer(node, "transB", 0) else array.T) * np.asarray(
            _number(node, "alpha"), array.dtype
        )
    elif node.inputs[0] is not weight:
        array = array.T
    x = next(v for v in node.inputs if v is not None and v not in constants)
    label = node.name or node.op_type
    inputs = [new[x], writer.constant(f"{label}/weight", np.ascontiguousarray(array)[:, :, None, None])]
    if node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constants.array(node.inputs[2])
        assert bias is not None
        if node.op_type == "Gemm":
            bias = bias * np.asarray(_number(node, "beta"), bias.dtype)
        bias = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), array.shape[:1]))
        inputs.append(writer.constant(f"{label}/bias", bias))
    return writer.node("Conv", inputs, label, ir.DataType.from_numpy(array.dtype), kernel_shape=[1, 1])


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(attribute.as_float())


def _operand(writer: Writer, value: ir.Value, constants: Constants, keep: bool) -> ir.Value:
    """A constant of an elementwise node, its vector laid along the second axis."""
    array = constants.array(value)
    if keep or array is None or (array.size == 1 and array.ndim == 0):
        return value
    if array.size == 1:
        return value if array.ndim <= 4 else writer.constant(value.name or "constant", array.reshape(()))
    if array.ndim == 4 and array.shape[1] == array.size:
        return value
    return writer.constant(value.name or "constant", array.reshape(-1, 1, 1))


def _remove(graph: ir.Graph, doomed: list[ir.Node]) -> None:
    """Remove nodes that nothing uses any more, and what only they used."""
    waiting = list(dict.fromkeys(doomed))
    while waiting:
        node = waiting.pop()
        if node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        inputs = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        for value in inputs:
            maker = value.producer()
            if maker is not None:
                waiting.append(maker)
                continue
            kept = value.uses() or value.is_graph_input() or value.is_graph_output()
            if value.is_initializer() and not kept:
                graph.initializers.pop(value.name or "", None)
