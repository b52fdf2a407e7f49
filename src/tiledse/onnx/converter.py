"""Convert: the same ONNX network with the tiles of a plan. Nothing outside its SE blocks is touched."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

import onnx

from ..errors import TiledSEError, TiledSEWarning
from ..plan import NearMiss, Plan
from ..refusing import without_refused
from ..targets import DEFAULT, Target
from ..targets import load as load_target
from ..tile import Tile
from .finder import Finding, fingerprint, locate
from .fit import Fit, fitted
from .model import OLDEST_OPSET, OnnxModel, upgraded
from .proof import Proof, check_upgrade, prove
from .requantising import requantised
from .scales import quantised
from .shapes import Image, Shapes, batched, checked, forget, shapes_of
from .squeeze import WHOLE
from .tile_pass import TilePass


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
            so it does that of itself; so does one with ``1xW:previous``, whose states have the rows of the maps.
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
        target=None if target == DEFAULT else load_target(target),
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
    if target is not None and not target.plain:
        plan.check_single_images(f"the form for '{target.name}' has no states; convert it without --target")
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
        given = next(v.shape for v in model.ir.graph.inputs if v.name == found.shapes.image.name)
        own = given[0] if given is not None and len(given) else None
        if batch is not None and isinstance(own, int) and own > 0 and own != batch:
            raise TiledSEError(
                f"target {target.name} takes a batch of {batch}, and {model.name} has {own}; export it with a batch of "
                f"{batch}, or leave the batch free"
            )
    fix_size = fix_size or (target is not None and target.static)
    for (block, tile), where in zip(plan, found.places):
        if tile.previous and quantised(where):
            raise TiledSEError(
                f"block '{block.name}' is quantised, and {tile} keeps a mean in float from frame to frame; tile the "
                "float network and quantise that, or give it another tile"
            )
    if divisor_tiles or fix_size or batch is not None or plan.calibrated or _rows_are_states(plan):
        model = model.clone()
        _fix(model, found.shapes.image, batch)
        found = locate(model, plan.input_size)
    now = found.plan
    changed = [
        block.name
        for (block, tile), was, learnt, before in zip(plan, now.tiles, plan.corrections, now.corrections)
        if ((tile, learnt) != (was, before) and tile != WHOLE) or not _plain(target)
    ]
    tiled_names = {b.name for b, tile in plan if tile != WHOLE and b.name in changed}
    if (requant := requantised(model, found, tiled_names)) is not model:
        model, found = requant, locate(requant, plan.input_size)
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
            plan = without_refused(plan, now, refused, len(changed))
            left = frozenset(miss.name for miss in refused)
            result = _with_tiles(model, plan, found.shapes, target=target, left=left)
    fit = None
    if target is not None:
        plain = result if target.plain else _with_tiles(model, plan, found.shapes)
        result, fit = fitted(result, plain, plan, target, verify)
        ir_version = ir_version or fit.ir_version
    if ir_version is not None:
        result.ir.ir_version = _checked_version(ir_version, result)
    checked(result, model)
    return Converted(result, plan, refused, proof, seconds, fit)


def _rows_are_states(plan: Plan) -> bool:
    """Whether a block keeps a state a row of its map, so that the map has one height."""
    return any(tile.previous and tile.height is not None for tile in plan.tiles)


def _plain(target: Target | None) -> bool:
    """Whether the form is that for ONNX Runtime."""
    return target is None or target.plain


def _named(plan: Plan, names: Sequence[str], tile: Tile) -> Plan:
    """A plan with another tile for some blocks."""
    return replace(plan, tiles=tuple(tile.on(b.axes) if b.name in names else t for b, t in plan))


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
