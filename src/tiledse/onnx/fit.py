"""Whether a finished ONNX network is what a target takes: by its graph, not by what was meant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

import onnx

from ..errors import TiledSEError, first_line
from ..plan import Plan
from ..targets import Target, beyond_two_step
from ..tile import Tile
from .comparing import feeds_of, relative
from .constants import Constants
from .model import OnnxModel
from .nodes import ints
from .runner import session
from .shapes import Shapes, batched, shapes_of

# Of whole networks in float32, as in proof.py.
_NETWORK, _HALF = 2e-3, 2e-2
# Percentage points beyond two-step SE that are worth a word; per cent more than SE that are.
_LEAST, _SLOWER = 1.0, 2.0
TWO_STEP = "HxW:two-step"


@dataclass(frozen=True)
class Fallback:
    """An operator that a target does not take.

    Attributes:
        node: Its name.
        operator: What it is.
        block: The SE block that it is part of; None for one of the rest of the network, which is not ours to change.
        reason: Why.
    """

    node: str
    operator: str
    block: str | None
    reason: str


@dataclass(frozen=True)
class FormOfBlock:
    """How a block was written.

    Attributes:
        name: The block.
        tile: Its tile.
        operators: Its operators, in order, without its excitation.
        windows: The windows of its pools, rows x columns.
    """

    name: str
    tile: str
    operators: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fit:
    """What a target takes of a converted network.

    Attributes:
        target: The target.
        blocks: The form of each block.
        fallbacks: What it does not take.
        opset: The opset of the file.
        ir_version: The version of the file format that it wants; None for any.
        difference: Of the whole network from its form for ONNX Runtime, relative to the largest number; None where
            nothing was tried.
    """

    target: Target
    blocks: tuple[FormOfBlock, ...]
    fallbacks: tuple[Fallback, ...]
    opset: int
    ir_version: int | None
    difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "target": self.target.name,
            "opset": self.opset,
            "blocks": [
                {"name": b.name, "tile": b.tile, "operators": list(b.operators),
                 "windows": [list(w) for w in b.windows]}
                for b in self.blocks
            ],
            "fallbacks": [
                {"node": f.node, "operator": f.operator, "block": f.block, "reason": f.reason}
                for f in self.fallbacks
            ],
            "max_rel_diff_form": self.difference,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """As text."""
        lines = [f"written for target {self.target.name}: {self.target.about}"]
        if self.difference is not None:
            lines.append(
                f"  in this form, the whole network, to that for ONNX Runtime: {self.difference:.1e}"
            )
        rows = [("block", "tile", "operators", "windows")]
        for block in self.blocks:
            counts = Counter(block.operators)
            ops = ", ".join(f"{n} {op}" if n > 1 else op for op, n in counts.items())
            windows = ", ".join(f"{h}x{w}" for h, w in dict.fromkeys(block.windows))
            rows.append((block.name, block.tile, ops, windows or "-"))
        wide = [max(len(row[i]) for row in rows) for i in range(4)]
        lines += ["  ".join(cell.ljust(n) for cell, n in zip(row, wide)).rstrip() for row in rows]
        more = beyond_two_step(self.target.measured, self.target.measured)
        if more and max(more) < _LEAST and any(not Tile.parse(b.tile).whole for b in self.blocks):
            exact = "HxW" if self.target.two_step else TWO_STEP
            lines.append(
                f"exact SE in two steps (--tile {exact}) gained as much on {self.target.name} where both were "
                f"measured, and loses nothing: tiledse advise --target {self.target.name}"
            )
        given = [Tile.parse(b.tile) for b in self.blocks]
        for kind, there in (("two-step", any(str(t) == TWO_STEP for t in given)),
                            ("tiles", any(not t.whole and not t.slides for t in given)),
                            ("sliding", any(t.slides for t in given))):  # fmt: skip
            if there and (said := _slower(self.target, kind)):
                lines.append(said)
        if not self.fallbacks:
            lines.append(f"nothing in the file is known to fall to the CPU on {self.target.name}")
        else:
            lines.append(f"falls to the CPU on {self.target.name}, is not taken, or runs less well there:")
            lines += [f"  {f.operator} '{f.node}': {f.reason}" for f in self.fallbacks]
        return lines


def _slower(target: Target, kind: str) -> str | None:
    """Where a kind of tiles took more than SE by the target's own tool, and what took less there."""
    worst = min((m for m in target.measured if m.kind == kind), key=lambda m: m.gain, default=None)
    if worst is None or worst.gain > -_SLOWER:
        return None
    said = f"{worst.form} took {-worst.gain:.0f} % more than SE in {worst.network} ({worst.source})"
    there = [
        m for m in target.measured if (m.network, m.input, m.se) == (worst.network, worst.input, worst.se)
    ]
    best = max(there, key=lambda m: m.gain)
    if best.gain > 0:
        said += f"; {best.form} took {best.gain:.0f} % less there"
    return said


def fitted(
    made: OnnxModel, plain: OnnxModel, plan: Plan, target: Target, verify: bool
) -> tuple[OnnxModel, Fit]:
    """A network that was written for a target, in the target's file format, and what the target takes of it.

    Args:
        made: The network in the target's form.
        plain: The same in the form for ONNX Runtime.
        plan: Its tiles.
        target: The target.
        verify: Whether to run both and compare.

    Raises:
        TiledSEError: a block is in no form that the target takes, the file cannot be brought to its opset, or the two
            give other numbers.
    """
    result = _in_opset(made, target)
    shapes = shapes_of(result, plan.input_size)
    names = [block.name for block in plan.blocks]
    fallbacks = unfit(result, target, shapes, names)
    ours = next((f for f in fallbacks if f.block is not None), None)
    if ours is not None:
        raise TiledSEError(
            f"target {target.name} does not take block '{ours.block}': {ours.operator} '{ours.node}': {ours.reason}; "
            "give it another tile, or convert without --target"
        )
    blocks = tuple(_form(result, block.name, str(tile), names) for block, tile in plan)
    ir_version = target.ir_version if (target.ir_version or 99) < (result.ir.ir_version or 0) else None
    # Another opset is always tried: what is spelt the same need not mean the same.
    tried = (verify and made is not plain) or result is not made
    difference = _difference(result, plain, shapes) if tried else None
    return result, Fit(target, blocks, tuple(fallbacks), result.opset, ir_version, difference)


def _in_opset(model: OnnxModel, target: Target) -> OnnxModel:
    """The network in the newest opset that the target takes.

    Operators that are spelt the same there are taken as they are, and means get their axes as an attribute; onnx's own
    version converter brings hardly a file down. That the numbers stay is tried by who asks.

    Raises:
        TiledSEError: an operator that the older opset does not have in this spelling.
    """
    if target.opset is None or model.opset <= target.opset:
        return model
    made = model.clone()
    constants = Constants(made.ir)
    for node in made.ir.graph.all_nodes():
        _drop_newer(node, target.opset)
        if node.op_type.startswith("Reduce") and len(node.inputs) > 1 and node.domain in ("", "ai.onnx"):
            axes = constants.ints(node.inputs[1])
            if _inputs_of(node.op_type, target.opset) == 1 and axes is not None:
                node.attributes["axes"] = ir.AttrInt64s("axes", list(axes))
                node.resize_inputs(1)
    made.ir.opset_imports["" if "" in made.ir.opset_imports else "ai.onnx"] = target.opset
    for function in made.ir.functions.values():
        function.opset_imports[""] = target.opset
    _drop_unused(made.ir.graph)
    try:
        onnx.checker.check_model(made.to_proto(), full_check=True)
    except Exception as error:
        raise TiledSEError(
            f"target {target.name} takes opset {target.opset} and older, {model.name} has {model.opset}, and is not "
            f"the same there: {first_line(error, 120)}; export it with opset {target.opset}"
        ) from error
    return made


def _drop_newer(node: ir.Node, opset: int) -> None:
    """Drop attributes that the older opset does not know, where they say what it does anyway."""
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return
    newest = onnx.defs.get_schema(node.op_type)
    try:
        known = onnx.defs.get_schema(node.op_type, max_inclusive_version=opset).attributes
    except onnx.defs.SchemaError:
        return  # the checker says that it is not there
    for name in [name for name in node.attributes if name not in known and name in newest.attributes]:
        default = newest.attributes[name].default_value
        given = ir.to_proto(node.attributes[name])
        if onnx.helper.get_attribute_value(given) == _value(default):
            node.attributes.pop(name)


def _value(default: onnx.AttributeProto) -> object:
    """What an attribute is where it is left out; None where it has no default."""
    return onnx.helper.get_attribute_value(default) if default.type else None


def _inputs_of(op_type: str, opset: int) -> int:
    """How many inputs an operator has at the most, in an opset."""
    return int(onnx.defs.get_schema(op_type, max_inclusive_version=opset).max_input)


def _drop_unused(graph: ir.Graph) -> None:
    """Drop initialisers that nothing uses."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
            graph.initializers.pop(name)


def _difference(made: OnnxModel, plain: OnnxModel, shapes: Shapes) -> float:
    """How far the two are apart, on a random image.

    Raises:
        TiledSEError: further than rounding.
    """
    feeds = feeds_of(made, shapes.image, batched(shapes.image, shapes.image.batch))
    try:
        got, expected = (session(m, optimise=False).run(None, feeds) for m in (made, plain))
    except TiledSEError:
        raise
    except Exception as error:
        raise TiledSEError(f"ONNX Runtime fails on the target's form: {first_line(error, 140)}") from error
    floats = [
        (np.asarray(a), np.asarray(b)) for a, b in zip(expected, got) if np.asarray(a).dtype.kind == "f"
    ]
    far = max((relative(a, b) for a, b in floats), default=0.0)
    half = any(a.dtype == np.float16 for a, _ in floats)
    quantised = any(node.op_type == "QuantizeLinear" for node in made.ir.graph)
    if not far <= (_HALF if half or quantised else _NETWORK):
        raise TiledSEError(
            f"in the form of the target the network gives other numbers than in that for ONNX Runtime: {far:.1e} of "
            "the largest; please report this"
        )
    return far


def unfit(model: OnnxModel, target: Target, shapes: Shapes, blocks: list[str]) -> list[Fallback]:
    """What a target does not take of a network, by its graph."""
    constants = Constants(model.ir)
    found = [
        Fallback(value.name or "", "input", None, f"its size is free; {target.name} takes fixed sizes")
        for value in model.ir.graph.inputs
        if target.static and not value.is_initializer() and value.name == shapes.image.name
        and any(not isinstance(d, int) for d in list(value.shape or ())[1:])
    ]  # fmt: skip
    for value in model.ir.graph.inputs:
        first = None if value.shape is None or not len(value.shape) else value.shape[0]
        if value.name == shapes.image.name and target.batch is not None and first != target.batch:
            reason = f"its batch is {first}; {target.name} takes {target.batch}"
            found.append(Fallback(value.name or "", "input", None, reason))
    for node in model.ir.graph:
        if node.outputs and node.outputs[0] in constants:
            continue
        why = _reason(node, target, shapes, constants)
        if why is not None:
            found.append(Fallback(node.name or "", node.op_type, _block_of(node, blocks), why))
    return found


def _reason(node: ir.Node, target: Target, shapes: Shapes, constants: Constants) -> str | None:
    """Why a target does not take a node, or None."""
    if node.op_type == "Resize" and target.resize is not None:
        return _resize_reason(node, target, shapes, constants)
    if node.op_type in target.rejects and not _is_dense(node, shapes, constants):
        return target.rejects[node.op_type]
    if target.axes is not None:
        for value in (*node.inputs, *node.outputs):
            shape = None if value is None else shapes.at.get(value.name or "")
            if shape is not None and len(shape) > target.axes:
                return f"'{value.name}' has {len(shape)} axes; it takes {target.axes}"  # type: ignore[union-attr]
    kernel, strides = _window(node, shapes)
    if kernel is None or (target.whole and node.op_type.startswith("Global")):
        return None
    if target.window is not None and max(kernel) > target.window:
        return f"a window of {'x'.join(map(str, kernel))}; it takes sides up to {target.window}"
    if target.window_product is not None and int(np.prod(kernel)) > target.window_product:
        return f"a window of {int(np.prod(kernel)):,} elements; it takes up to {target.window_product:,}"
    if target.stride is not None and max(strides) > target.stride:
        return f"strides of {'x'.join(map(str, strides))}; it takes up to {target.stride}"
    return None


def _is_dense(node: ir.Node, shapes: Shapes, constants: Constants) -> bool:
    """Whether a MatMul is a dense layer on vectors, which is no product of maps to any compiler."""
    first = shapes.at.get((node.inputs[0].name if node.inputs and node.inputs[0] is not None else "") or "")
    return node.op_type == "MatMul" and first is not None and len(first) == 2 and node.inputs[1] in constants


def _window(node: ir.Node, shapes: Shapes) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """The window of a pool and its strides; a global pool's is its map."""
    if node.op_type in ("AveragePool", "MaxPool"):
        kernel = ints(node, "kernel_shape", ())
        return kernel, ints(node, "strides", (1,) * len(kernel))
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        shape = shapes.of(node.inputs[0])
        if shape is not None:
            return shape[2:], (1,) * len(shape[2:])
    return None, ()


def _resize_reason(node: ir.Node, target: Target, shapes: Shapes, constants: Constants) -> str | None:
    before, after = shapes.of(node.inputs[0]), shapes.of(node.outputs[0])
    if before is None or after is None:
        return "its sizes are not known"
    assert target.resize is not None
    scales = [b / a for a, b in zip(before, after) if a != b]
    wrong = next((s for s in scales if s not in target.resize), None)
    if wrong is None:
        return None
    return f"it repeats by {wrong:g}; {target.name} takes {', '.join(map(str, target.resize))}"


def _block_of(node: ir.Node, blocks: list[str]) -> str | None:
    """The block that a node was written for: its name, or what its name begins with."""
    name = node.name or ""
    return next((b for b in blocks if name == b or name.startswith(f"{b}/")), None)


def _form(model: OnnxModel, name: str, tile: str, blocks: list[str]) -> FormOfBlock:
    own = [node for node in model.ir.graph if _block_of(node, blocks) == name]
    windows = tuple(tuple(ints(n, "kernel_shape", ())) for n in own if n.op_type == "AveragePool")
    return FormOfBlock(name, tile, tuple(n.op_type for n in own), windows)
