"""Quantised SE blocks: descriptors take their map's own scale and zero point, and the biases behind them follow.

A statically quantised file holds the range of means over whole maps, which means over tiles leave. The mean of any part
of a map lies within the range of the map, so its scale holds for every tile, and no images are needed to find it.
A bias of int32 is counted in steps of (scale of the descriptors) x (scale of the weights), so it is counted anew.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ..errors import TiledSEError
from .comparing import relative
from .constants import Constants
from .cutting import CutOut, Ends
from .finder import Finding
from .model import OnnxModel
from .nodes import integer, only_user
from .scales import first_quantised, quantised, scale_of_map

_LARGEST = 2**31 - 1
# Of the largest number of a product: what rounding to the steps of a map may make of its gates.
_FARTHEST = 0.15


def requantised(model: OnnxModel, found: Finding, names: Collection[str]) -> OnnxModel:
    """A clone in which the descriptors of some blocks take the scale of their maps; the network, if none is quantised.

    Args:
        model: A network.
        found: What ``locate`` gave on this very network.
        names: Blocks that are to be given tiles.

    Raises:
        TiledSEError: the scale of a map, or of weights, is not constant, or a bias does not fit into 32 bits.
    """
    chosen = [b.name for b, p in zip(found.plan.blocks, found.places) if b.name in names and quantised(p)]
    if not chosen:
        return model
    made = model.clone()
    values = ir.convenience.create_value_mapping(made.ir.graph)
    constants = Constants(made.ir)
    taken = set(values)
    for block, place in zip(found.plan.blocks, found.places):
        if block.name not in chosen:
            continue
        first = first_quantised(place)
        assert first is not None
        node = _same(values, first)
        dequantised = only_user(node.outputs[0])
        scale = scale_of_map(place)
        if scale is None or dequantised is None or dequantised.op_type != "DequantizeLinear":
            raise TiledSEError(
                f"block '{block.name}': its descriptors are quantised and its map is not, with one constant scale, so "
                "the range of means over tiles is not known; tile the float network and quantise that"
            )
        inputs = [None if v is None else values[v.name or ""] for v in scale]
        if _constant(constants, inputs[0], block.name).size != 1:
            raise TiledSEError(
                f"block '{block.name}': its map has a scale for each channel; expected one for all"
            )
        for each in (node, dequantised):
            each.resize_inputs(1 + len(inputs))
            for at, value in enumerate(inputs):
                each.replace_input_with(1 + at, value)
        for use in list(dequantised.outputs[0].uses()):
            if use.node.op_type == "Conv":
                _count_bias_anew(made.ir, use.node, inputs[0], constants, taken, block.name)
    _check(model, made, found, chosen)
    return made


def _check(before: OnnxModel, after: OnnxModel, found: Finding, names: Collection[str]) -> None:
    """Check that blocks gate as they did, but for steps of their scales, on maps of one number a channel.

    Raises:
        TiledSEError: one does not: its map has so large a range that too few steps are left for its descriptors.
    """
    generator = np.random.default_rng(0)
    constants = found.constants
    for block, place in zip(found.plan.blocks, found.places):
        shape = found.shapes.of(place.squeeze.source)
        first = first_quantised(place)
        if block.name not in names or shape is None or first is None:
            continue
        ends = Ends(place.squeeze.source.name or "", place.product.outputs[0].name or "")
        scale = float(_constant(constants, first.inputs[1], block.name).reshape(-1)[0])
        zero = 0.0
        kind = np.dtype(np.uint8)
        if len(first.inputs) > 2:
            stored = _constant(constants, first.inputs[2], block.name)
            zero, kind = float(stored.reshape(-1)[0]), stored.dtype
        info = np.iinfo(kind)
        numbers = generator.uniform(
            info.min, info.max, [d if i == place.squeeze.axes[0] else 1 for i, d in enumerate(shape)]
        )
        x = np.broadcast_to((numbers - zero) * scale, shape).astype(np.float32)
        old, new = (
            CutOut(model, [ends], found.shapes).run({ends.source: np.ascontiguousarray(x)})[ends.product]
            for model in (before, after)
        )
        far = relative(old, new)
        if not far <= _FARTHEST:
            raise TiledSEError(
                f"block '{block.name}': with the scale of its map its descriptors have too few steps: its product is "
                f"{far:.1e} off, relative to its largest number, where {_FARTHEST:g} is allowed; tile the float "
                "network and quantise that"
            )


def _same(values: dict[str, ir.Value], node: ir.Node) -> ir.Node:
    """The node of a clone that is the node of its original."""
    found = values[node.outputs[0].name or ""].producer()
    assert found is not None
    return found


def _constant(constants: Constants, value: ir.Value | None, name: str) -> np.ndarray:
    array = constants.array(value)
    if array is None:
        raise TiledSEError(
            f"block '{name}': a scale of its quantisation is not constant; quantise the network statically"
        )
    return array


def _count_bias_anew(
    model: ir.Model, layer: ir.Node, scale: ir.Value | None, constants: Constants, taken: set[str], name: str
) -> None:
    """Give a layer the bias that it had, in steps of its descriptors' new scale."""
    weight = layer.inputs[1].producer() if layer.inputs[1] is not None else None
    held = layer.inputs[2].producer() if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
    if held is None or held.op_type != "DequantizeLinear":
        return  # a bias of floating numbers, or none
    if weight is None or weight.op_type != "DequantizeLinear":
        raise TiledSEError(f"block '{name}': its bias is quantised and its weights are not; quantise both")
    old = _constant(constants, held.inputs[0], name).astype(np.float64) * _constant(
        constants, held.inputs[1], name
    ).astype(np.float64).reshape(-1)
    steps = _constant(constants, scale, name).astype(np.float64).reshape(-1) * _constant(
        constants, weight.inputs[1], name
    ).astype(np.float64).reshape(-1)
    counted = np.rint(old / steps)
    if np.abs(counted).max(initial=0) > _LARGEST:
        raise TiledSEError(f"block '{name}': its bias does not fit into 32 bits at the scale of its map")
    axis = {"axis": integer(held, "axis", 0)} if steps.size > 1 else {}
    scales = (steps if axis else steps.reshape(())).astype(np.float32)
    inputs = []
    for what, array in (("bias", counted.astype(np.int32)), ("bias_scale", scales)):
        label = f"{name}/{what}"
        while label in taken:
            label += "_again"
        taken.add(label)
        value = ir.Value(name=label, const_value=ir.tensor(array, name=label))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        model.graph.register_initializer(value)
        inputs.append(value)
    out = ir.Value(name=f"{name}/bias_dequantised", shape=held.outputs[0].shape)
    out.dtype = ir.DataType.FLOAT
    node = ir.node("DequantizeLinear", inputs, axis, outputs=[out], name=f"{name}/bias_dequantise")
    model.graph.insert_before(layer, node)
    layer.replace_input_with(2, out)
