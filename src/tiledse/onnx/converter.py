"""Convert: the same ONNX network with the tiles of a plan. Nothing outside its SE blocks is touched."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

import onnx

from ..correction import Correction
from ..documents import write_json
from ..errors import TiledSEError, TiledSEWarning
from ..plan import NearMiss, Plan
from ..targets import DEFAULT, Target
from ..targets import load as load_target
from ..tile import Tile
from .constants import Constants
from .emit import Sides, Writer, covers
from .excitation import DENSE, RESHAPES, Excitation
from .finder import Finding, Place, effect, fingerprint, locate
from .fit import Fit, fitted
from .metadata import METADATA_KEY, TARGET_KEY, WEIGHTS_KEY, Stated, stated_tiles
from .model import OLDEST_OPSET, OnnxModel, upgraded
from .nodes import integer
from .proof import Proof, check_upgrade, prove
from .shapes import Image, Shapes, batched, checked, forget, shapes_of
from .squeeze import WHOLE
from .target_writer import TargetWriter, takes_whole


def convert(
    model: OnnxModel, plan: Plan, *, divisor_tiles: bool = False, fix_size: bool = False, batch: int | None = None,
    ir_version: int | None = None, verify: bool = True, target: Target | str | Path = DEFAULT,
) -> OnnxModel:  # fmt: skip
    """Give an ONNX network the tiles of a plan; ``HxW`` gives plain SE back.

    What was made is tried in ONNX Runtime before it is handed out, on random numbers (``proof.py``): each block against
    the block as it was on each tile alone, and the network with one tile over each map against the network as it was;
    at a second size, where the file leaves one free. A block that fails stays as it was.

    Args:
        model: The network, SE or converted before; it is left as it was.
        plan: From ``find`` on this network, with the tiles wanted.
        divisor_tiles: Take for each block the tile of ``divisor_plan``, and fix height and width of the input at
            those of the plan where the file leaves them free: no ragged tile is left, so the blocks consist of
            AveragePool, Conv, their activations, Resize (nearest, integer scale) and Mul; Transpose and MatMul with
            ``running``.
        fix_size: Fix height and width of the input at those of the plan. A plan with corrections holds for one size,
            so it does that of itself.
        batch: Fix the batch, and with it height and width: no size within is left symbolic.
        ir_version: The version of the file format to write, for tools that take no newer one.
        verify: Whether to try what was made.
        target: What the form is for: a ``Target``, the name of one, or a file (``tiledse.targets.load``). One that
            wants another form than ONNX Runtime's fixes height and width, and its batch. What is converted for it is
            handed out only if it is what the target takes.

    Returns:
        A new network with the same opset, inputs, outputs and weights; ``find`` on it gives the plan, but for blocks
        that were refused. One of opset 7 to 10 comes back in opset 11.

    Raises:
        TiledSEError: the plan was made for another network or input size, or has no block; its corrections were
            fitted on other weights; ONNX Runtime does not run the network as it was; or every block was refused.

    Warns:
        TiledSEWarning: a block was refused; with the reason.
    """
    made = convert_verified(
        model,
        plan,
        divisor_tiles=divisor_tiles,
        fix_size=fix_size,
        batch=batch,
        ir_version=ir_version,
        verify=verify,
        target=load_target(target),
    )
    for miss in made.refused:
        warnings.warn(f"block '{miss.name}' was left as it was: {miss.reason}", TiledSEWarning, stacklevel=2)
    return made.model


@dataclass(frozen=True)
class Converted:
    """A converted network, and what its verification gave.

    Attributes:
        model: The network.
        plan: What was really converted: ``find`` on it gives this.
        refused: Blocks of the plan asked for that were left as they were, with the reason.
        proof: What was measured; None where nothing was verified.
        seconds: What verifying took.
        fit: What the target takes of it; None without a target.
    """

    model: OnnxModel
    plan: Plan
    refused: tuple[NearMiss, ...] = ()
    proof: Proof | None = None
    seconds: float | None = None
    fit: Fit | None = None


def convert_verified(
    model: OnnxModel, plan: Plan, *, divisor_tiles: bool = False, fix_size: bool = False, batch: int | None = None,
    ir_version: int | None = None, verify: bool = True, found: Finding | None = None,
    target: Target | None = None,
) -> Converted:  # fmt: skip
    """``convert``, with what was found out on the way.

    ``found`` is what ``locate`` gave on this very network at the plan's size, for callers that have it.

    Raises:
        TiledSEError: see ``convert``.
    """
    if not len(plan):
        raise TiledSEError(
            "the plan has no SE block to convert; `tiledse find` says what was found and what nearly was"
        )
    found = found or locate(model, plan.input_size)
    plan.check_network(found.plan)
    if model.opset < OLDEST_OPSET:
        older, model = model, upgraded(model)
        if verify:
            check_upgrade(older, model, found.shapes.image)
        found = locate(model, plan.input_size)
        plan.check_network(found.plan)
    if plan.calibrated:
        plan.check_weights(fingerprint(found, model))
    if divisor_tiles:
        plan = divisor_plan(plan)
    if target is not None and batch is None:
        batch = target.batch
    fix_size = fix_size or (target is not None and target.static)
    if divisor_tiles or fix_size or batch is not None or plan.calibrated:
        model = model.clone()
        _fix(model, found.shapes.image, batch)
        found = locate(model, plan.input_size)
    now = found.plan
    changed = [
        block.name
        for (block, tile), was, learnt, before in zip(plan, now.tiles, plan.corrections, now.corrections)
        if (tile, learnt) != (was, before) and tile != WHOLE or not _plain(target)
    ]
    result = _with_tiles(model, plan, found.shapes, target=target)
    proof, refused = None, tuple[NearMiss, ...]()
    seconds = 0.0 if verify else None
    if verify and changed:
        start = time.perf_counter()
        whole = _named(now.uncalibrated, changed, Tile(None, None))
        tiled = whole.tiles != now.tiles
        before = _with_tiles(model, whole, found.shapes) if tiled else model
        place = locate(before, plan.input_size) if tiled else found
        tall = 2 * max(block.height for block in plan.blocks) + 512

        def one_tile(names: Sequence[str]) -> OnnxModel:
            return _with_tiles(before, _named(whole, names, Tile(tall, None)), place.shapes, forced=True)

        proof = prove(before, place, plan, result, one_tile, changed)
        seconds = time.perf_counter() - start
        refused = tuple(NearMiss(name, reason) for name, reason in proof.refused.items())
        if refused:
            plan = _without(plan, now, refused, len(changed))
            left = frozenset(miss.name for miss in refused)
            result = _with_tiles(model, plan, found.shapes, target=target, left=left)
    fit = None
    if target is not None:
        result, fit = fitted(result, _with_tiles(model, plan, found.shapes), plan, target, verify)
        ir_version = ir_version or fit.ir_version
    if ir_version is not None:
        result.ir.ir_version = _checked_version(ir_version, result)
    checked(result, model)
    return Converted(result, plan, refused, proof, seconds, fit)


def _plain(target: Target | None) -> bool:
    """Whether the form is that for ONNX Runtime."""
    return target is None or target.plain


def _named(plan: Plan, names: Sequence[str], tile: Tile) -> Plan:
    """A plan with another tile for some blocks."""
    return replace(plan, tiles=tuple(tile if b.name in names else t for b, t in plan))


def _without(plan: Plan, now: Plan, refused: Sequence[NearMiss], asked: int) -> Plan:
    """A plan in which refused blocks have the tiles that they have now.

    Raises:
        TiledSEError: none is left, or later blocks are calibrated for what is refused.
    """
    first = refused[0]
    if len(refused) == asked:
        more = "" if asked == 1 else f" (and {asked - 1} more)"
        raise TiledSEError(
            f"no block could be converted: '{first.name}': {first.reason}{more}; leave verifying out with "
            "verify=False (--no-verify) to have them as they are read"
        )
    if plan.calibrated:
        raise TiledSEError(
            f"block '{first.name}' cannot be converted: {first.reason}; later blocks are calibrated for its tiles: "
            "calibrate again a plan in which it has HxW"
        )
    names = {miss.name for miss in refused}
    tiles = tuple(was if b.name in names else tile for (b, tile), was in zip(plan, now.tiles))
    return replace(plan, tiles=tiles)


def _with_tiles(
    model: OnnxModel, plan: Plan, shapes: Shapes, forced: bool = False, target: Target | None = None,
    left: frozenset[str] = frozenset(),
) -> OnnxModel:  # fmt: skip
    """A clone of a network with the tiles of a plan for it; ``shapes`` are those of the network."""
    result = model.clone()
    found = locate(result, plan.input_size, shapes)
    TilePass(plan, found, forced, target, left)(result.ir)
    _forget_stale(result, found.shapes)
    return result


def _forget_stale(model: OnnxModel, shapes: Shapes) -> None:
    """Drop stated shapes of values within that are not so at every size: a runtime may believe them."""
    for node in model.ir.graph:
        for value in node.outputs:
            if value.shape is None or value.is_graph_output():
                continue
            known = shapes.declared.get(value.name or "")
            stated = [d if isinstance(d, int) else None for d in value.shape]
            if known is None or len(known) != len(stated) or any(
                s is not None and s != k for s, k in zip(stated, known)
            ):  # fmt: skip
                value.shape = None


def _checked_version(version: int, model: OnnxModel) -> int:
    """A version of the file format that the network's opset goes with.

    Raises:
        TiledSEError: it is older than the opset, or newer than the package onnx.
    """
    oldest = next((ir_ for name, ir_, *sets in onnx.helper.VERSION_TABLE if sets[0] >= model.opset), 0)
    if not oldest <= version <= onnx.IR_VERSION:
        raise TiledSEError(
            f"IR version {version} does not go with opset {model.opset}: expected {oldest} to {onnx.IR_VERSION}"
        )
    return version


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


def _fix(model: OnnxModel, image: Image, batch: int | None) -> None:
    """Make the input's height and width those of the plan, and the batch, where one is given; state no other size.

    Raises:
        TiledSEError: the file fixes another batch.
    """
    for value in model.ir.graph.inputs:
        if value.name == image.name and value.shape is not None:
            own = value.shape[0]
            if batch is not None and isinstance(own, int) and own > 0 and own != batch:
                raise TiledSEError(f"{model.name} takes a batch of {own}, but got {batch}; leave --batch out")
            value.shape = ir.Shape([own if batch is None else batch, *batched(image, 1)[1:]])
        elif batch is not None and value.shape is not None and not value.is_initializer():
            dims = [
                d if isinstance(d, int) and d > 0 else 1 if i else batch for i, d in enumerate(value.shape)
            ]
            value.shape = ir.Shape(dims)
    forget(model.ir, outputs=False)
    if batch is not None:
        at = shapes_of(model, image.size).at
        for value in model.ir.graph.outputs:
            if (shape := at.get(value.name or "")) is not None and None not in shape:
                value.shape = ir.Shape(shape)


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
        self.target = None if _plain(target) else target
        self.plan = plan
        self.found = found
        self.forced = forced

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the blocks whose tile changes."""
        self.taken = set(ir.convenience.create_value_mapping(model.graph))
        self.taken.update(node.name for node in model.graph.all_nodes() if node.name)
        before_this = stated_tiles(model)
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
            place.product.replace_input_with(place.slot, repeated)
            doomed = [n for n in doomed if n is not place.product]
        _remove(model.graph, doomed)
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
