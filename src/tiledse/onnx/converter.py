"""Convert: the same ONNX network with the tiles of a plan. Nothing outside its SE blocks is touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..correction import Correction
from ..documents import write_json
from ..errors import TiledSEError
from ..plan import Plan
from ..tile import Tile
from .constants import Constants
from .emit import Writer, covers
from .excitation import DENSE, RESHAPES, Excitation
from .finder import Finding, Place, effect, fingerprint, locate
from .metadata import METADATA_KEY, WEIGHTS_KEY, Stated, stated_tiles
from .model import OnnxModel
from .nodes import integer
from .shapes import Image, Shapes, batched, checked


def convert(
    model: OnnxModel, plan: Plan, *, divisor_tiles: bool = False, fix_size: bool = False
) -> OnnxModel:
    """Give an ONNX network the tiles of a plan; ``HxW`` gives plain SE back.

    Args:
        model: The network, SE or converted before; it is left as it was.
        plan: From ``find`` on this network, with the tiles wanted.
        divisor_tiles: Take for each block the tile of ``divisor_plan``, and fix height and width of the input at
            those of the plan where the file leaves them free: no ragged tile is left, so the blocks consist of
            AveragePool, Conv, their activations, Resize (nearest, integer scale) and Mul; Transpose and MatMul with
            ``running``.
        fix_size: Fix height and width of the input at those of the plan. A plan with corrections holds for one size,
            so it does that of itself.

    Returns:
        A new network with the same opset, inputs, outputs and weights; ``find`` on it gives the plan.

    Raises:
        TiledSEError: the plan was made for another network or input size, or has no block; or its corrections were
            fitted on other weights.
    """
    if not len(plan):
        raise TiledSEError(
            "the plan has no SE block to convert; `tiledse find` says what was found and what nearly was"
        )
    found = locate(model, plan.input_size)
    plan.check_network(found.plan)
    if plan.calibrated:
        plan.check_weights(fingerprint(found, model))
    if divisor_tiles:
        plan = divisor_plan(plan)
    result = model.clone()
    if divisor_tiles or fix_size or plan.calibrated:
        _fix(result, found.shapes.image)
    again = locate(result, plan.input_size)
    TilePass(plan, again)(result.ir)
    checked(result)
    return result


def divisor_plan(plan: Plan) -> Plan:
    """The same plan with tiles that divide their maps: of the divisors of H, the nearest to k.

    Between two that are equally near it is the smaller one, which holds less. ``upper`` and ``middle`` stay: a single
    strip is never ragged.

    Example:
        >>> from tiledse.plan import SEBlock
        >>> block = SEBlock("se", 8, 2, 20, 12, "onnx.SE")
        >>> plan = Plan((block,), (Tile.parse("7xW"),), (3, 40, 24))
        >>> str(divisor_plan(plan).tiles[0])
        '5xW'
    """

    def nearest(side: int | None, length: int) -> int | None:
        if side is None:
            return None
        divisors = [d for d in range(1, length + 1) if length % d == 0]
        return min(divisors, key=lambda d: (abs(d - side), d))

    tiles = tuple(
        tile if tile.single else _resized(tile, nearest(tile.height, b.height), nearest(tile.width, b.width))
        for b, tile in plan
    )
    if plan.calibrated and tiles != plan.tiles:
        raise TiledSEError(
            "the plan is calibrated for strips that do not divide their maps; convert it without divisor tiles, or "
            "calibrate a plan whose tiles divide them"
        )
    return replace(plan, tiles=tiles)


def _resized(tile: Tile, height: int | None, width: int | None) -> Tile:
    """The tile with other sides; a look-ahead below 0 is at most the rows above the strip."""
    ahead = tile.ahead if height is None else max(tile.ahead, -height)
    return replace(tile, height=height, width=width, ahead=ahead)


def _fix(model: OnnxModel, image: Image) -> None:
    """Make the input's height and width those of the plan; the batch stays as it is."""
    for value in model.ir.graph.inputs:
        if value.name == image.name and value.shape is not None:
            value.shape = ir.Shape([value.shape[0], *batched(image, 1)[1:]])


class TilePass(ir.passes.InPlacePass):
    """Puts the tiles of a plan into a graph.

    Args:
        plan: The plan.
        found: Where its blocks stand in this very graph.
    """

    def __init__(self, plan: Plan, found: Finding) -> None:
        super().__init__()
        self.plan = plan
        self.found = found

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the blocks whose tile changes."""
        self.taken = set(ir.convenience.create_value_mapping(model.graph))
        self.taken.update(node.name for node in model.graph.all_nodes() if node.name)
        stated = stated_tiles(model)
        changed, entries = False, dict[str, Stated]()
        given = zip(self.plan, self.plan.corrections, self.found.plan.corrections)
        for ((block, tile), learnt, before), now, place in zip(
            given, self.found.plan.tiles, self.found.places
        ):
            pool = stated[block.name].pool if block.name in stated else place.squeeze.node.op_type
            entries[block.name] = Stated(tile, pool)
            if learnt != before or (tile != now and not self.same(place, tile, now)):
                self.rewrite(model, place, block.name, tile, pool, learnt)
                changed = True
        model.metadata_props.pop(METADATA_KEY, None)
        model.metadata_props.pop(WEIGHTS_KEY, None)
        if self.plan.calibrated:
            model.metadata_props[WEIGHTS_KEY] = next(
                c.weights for c in self.plan.corrections if c is not None
            )
        tiled = {name: (str(tile), pool) for name, (tile, pool) in entries.items() if not tile.whole}
        if tiled:
            model.metadata_props[METADATA_KEY] = write_json(tiled)
        return ir.passes.PassResult(model, changed or bool(tiled))

    def same(self, place: Place, a: Tile, b: Tile) -> bool:
        """Whether two tiles do the same to the map of a block, at every size that it can have."""
        sizes = [self.found.shapes.fixed(place.squeeze.source, axis) for axis in place.squeeze.axes[1:]]
        fixed = sizes[0], sizes[1]
        if covers(a, fixed) and covers(b, fixed):
            return True
        return None not in sizes and effect(a, *sizes) == effect(b, *sizes)  # type: ignore[arg-type]

    def rewrite(
        self, model: ir.Model, place: Place, name: str, tile: Tile, pool: str, learnt: Correction | None
    ) -> None:
        """Replace squeeze and repetition of one block, and its excitation where it cannot take a grid."""
        squeeze, excitation, shapes = place.squeeze, place.excitation, self.found.shapes
        old = squeeze.descriptors
        dtype = shapes.type(squeeze.source)
        _, rows, cols = squeeze.axes
        fixed = (shapes.fixed(squeeze.source, rows), shapes.fixed(squeeze.source, cols))
        producer = old.producer()
        assert producer is not None
        doomed = [producer, *excitation.nodes, excitation.user, *self.between(excitation, place)]
        writer = Writer(model, producer, name, dtype, self.taken)
        descriptors, named = writer.squeeze(squeeze.source, squeeze.axes, tile, fixed, pool, learnt)
        writer = Writer(model, place.product, name, dtype, self.taken)
        if excitation.in_place:
            old.replace_all_uses_with(descriptors)
            gates = excitation.gate
            for node in excitation.nodes:
                for value in node.outputs:
                    value.shape = None  # they now hold one value a tile
            doomed = [n for n in doomed if n not in excitation.nodes]
        else:
            gates = _rebuild(writer, descriptors, excitation, shapes, self.found.constants)
        repeated = writer.repeat(gates, squeeze.source, squeeze.axes, tile, fixed, place.layout)
        place.product.replace_input_with(place.slot, repeated)
        _remove(model.graph, [n for n in doomed if n is not place.product])
        if old.producer() is None or old.producer().graph is None:  # type: ignore[union-attr]
            descriptors.name = old.name
        named.name = name

    def between(self, excitation: Excitation, place: Place) -> list[ir.Node]:
        """The nodes from the end of the excitation to the product, which repeat the gates."""
        nodes, node = [], excitation.user
        while node is not place.product:
            nodes.append(node)
            node = next(iter(node.outputs[0].uses())).node
        return nodes


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
    return writer.node("Conv", inputs, label, kernel_shape=[1, 1])


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
