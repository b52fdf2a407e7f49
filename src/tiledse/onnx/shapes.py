"""Shapes of every value of a graph: as the file declares them, and at one input size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

import onnx

from ..errors import TiledSEError, first_line
from ..notation import AXES
from ..notation import shape as lettered
from .constants import Constants
from .inference import Shape, forget, infer
from .model import OnnxModel, check_memory


class Image(NamedTuple):
    """The input that takes the image."""

    name: str
    channel_axis: int
    size: tuple[int, ...]
    batch: int


@dataclass
class Shapes:
    """Shapes of values by name.

    Attributes:
        image: The input, and the size that ``at`` belongs to.
        at: Shapes at that size, for a batch of one where the batch is free.
        declared: Shapes as far as the file fixes them; None for an axis that is free.
        types: Element types of values by name.
    """

    image: Image
    at: dict[str, Shape]
    declared: dict[str, Shape]
    types: dict[str, ir.DataType]

    def type(self, value: ir.Value) -> ir.DataType:
        """The element type of a value."""
        return value.dtype or self.types.get(value.name or "", ir.DataType.FLOAT)

    def of(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape at the input size, or None."""
        shape = None if value is None else self.at.get(value.name or "")
        return None if shape is None or any(d is None for d in shape) else shape  # type: ignore[return-value]

    def fixed(self, value: ir.Value, axis: int) -> int | None:
        """An axis as the file fixes it, or None where it is free."""
        shape = self.declared.get(value.name or "")
        return shape[axis] if shape is not None and axis < len(shape) else None


def shapes_of(model: OnnxModel, input_size: Sequence[int] | None) -> Shapes:
    """Infer the shapes of a network.

    Shapes that ONNX's inference does not reach are measured by running the network once on zeros.

    Raises:
        TiledSEError: no image input, no size where the file leaves it free, or a size that it does not take.
    """
    image = image_input(model, input_size)
    stated = model.ir.clone()
    _free_inputs(stated)
    forget(stated)
    declared, types = infer(stated)
    fixed = model.ir.clone()
    _fix_inputs(fixed, image)
    forget(fixed)
    at, more = infer(fixed)
    types = {**_stated_types(model), **types, **more}
    constants = Constants(model.ir)
    unknown = [
        value.name
        for node in model.ir.graph
        for value in node.outputs
        if value.name and value not in constants and any(d is None for d in at.get(value.name) or (None,))
    ]
    if unknown:
        at.update(_measure(model, fixed, image, unknown))
    if _settled(model, image):
        declared = {
            name: (declared.get(name, shape)[:1] or shape[:1]) + shape[1:] for name, shape in at.items()
        }
    return Shapes(image, at, declared, types)


# What they give is as long as the data says.
_DATA_DEPENDENT = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "Loop", "Scan", "If"}


def _settled(model: OnnxModel, image: Image) -> bool:
    """Whether the file fixes the size of the image, and with it all sizes within."""
    for value in model.ir.graph.inputs:
        if value.is_initializer() or value.shape is None:
            continue
        first = 1 if value.name == image.name else 0
        if any(not isinstance(d, int) or d < 1 for d in list(value.shape)[first:]):
            return False
    return not any(node.op_type in _DATA_DEPENDENT for node in model.ir.graph)


def image_input(model: OnnxModel, input_size: Sequence[int] | None = None) -> Image:
    """The input of 4 axes, and the size of an image for it; where there is none, the one of 3 or 5 (sound, volumes).

    Raises:
        TiledSEError: there is none or several, the size is free and not given, or another one is fixed.
    """
    inputs = [v for v in model.ir.graph.inputs if not v.is_initializer()]
    ranked = [(v, v.shape.rank()) for v in inputs if v.shape is not None]
    maps = [v for v, rank in ranked if rank == 4] or [v for v, rank in ranked if rank in (3, 5)]
    chosen = [v for v in maps if model.image in (None, v.name)]
    if len(chosen) != 1:
        names = ", ".join(f"'{v.name}' {v.shape}" for v in inputs) or "none"
        if model.image is not None:
            raise TiledSEError(
                f"{model.name} has no input '{model.image}' of 4 axes (an image, N x C x H x W); its inputs: {names}"
            )
        more = "; say which takes the image with --image NAME" if maps else ""
        raise TiledSEError(
            f"{model.name}: expected one input of 4 axes (an image, N x C x H x W), got {len(maps)}{more}; "
            f"its inputs: {names}"
        )
    value = chosen[0]
    dims = [d if isinstance(d, int) and d > 0 else None for d in value.shape or ()]
    last = len(dims) == 4 and dims[3] in (1, 2, 3, 4) and dims[1] not in (1, 2, 3, 4)
    axis = 3 if last else 1
    own = (dims[axis], *(dims[i] for i in range(1, len(dims)) if i != axis))
    letters = "x".join(("C", *AXES[len(own) - 1]))
    if input_size is None:
        if None in own:
            text = "x".join("?" if d is None else str(d) for d in own)
            raise TiledSEError(
                f"{model.name} leaves the size of its input '{value.name}' free ({text}), so shapes cannot be "
                f"inferred; give the size with --input {letters}"
            )
        size = own
    else:
        size = tuple(input_size)
        if len(size) != len(own) or any(not isinstance(s, int) or isinstance(s, bool) or s < 1 for s in size):
            such = {2: (80, 1000), 3: (3, 224, 224), 4: (3, 16, 224, 224)}[len(own)]
            raise TiledSEError(
                f"expected an input size of {lettered(len(own) - 1)}, such as {such}, got {size}"
            )
        if any(o is not None and o != s for o, s in zip(own, size)):
            want, got = ("x".join("?" if d is None else str(d) for d in s) for s in (own, size))
            raise TiledSEError(f"{model.name} takes an input of {want}, but got {got}; give --input {want}")
    return Image(value.name or "", axis, size, dims[0] or 1)  # type: ignore[arg-type]


def batched(image: Image, batch: int) -> tuple[int, ...]:
    """The shape of a batch of images as the input takes it."""
    channels, *sides = image.size
    return (batch, channels, *sides) if image.channel_axis == 1 else (batch, *sides, channels)


def _fix_inputs(graph: ir.Model, image: Image) -> None:
    for value in graph.graph.inputs:
        if value.is_initializer() or value.shape is None:
            continue
        if value.name == image.name:
            value.shape = ir.Shape(batched(image, image.batch))
        else:
            value.shape = ir.Shape([d if isinstance(d, int) and d > 0 else 1 for d in value.shape])


def _free_inputs(graph: ir.Model) -> None:
    """Give each axis of an input that the file leaves free, be it by -1 or 0, a name that inference carries on."""
    for value in graph.graph.inputs:
        if value.is_initializer() or value.shape is None:
            continue
        dims = [f"{value.name}_{i}" if isinstance(d, int) and d < 1 else d for i, d in enumerate(value.shape)]
        value.shape = ir.Shape(dims)


def _stated_types(model: OnnxModel) -> dict[str, ir.DataType]:
    values = ir.convenience.create_value_mapping(model.ir.graph)
    return {name: value.dtype for name, value in values.items() if value.dtype is not None}


def _measure(model: OnnxModel, fixed: ir.Model, image: Image, names: Iterable[str]) -> dict[str, Shape]:
    """Run the network once on zeros and note the shapes of the named values."""
    from .runner import run

    values = ir.convenience.create_value_mapping(fixed.graph)
    wanted = {}
    fixed.graph.outputs.clear()
    for i, name in enumerate(names):
        node = ir.node("Shape", [values[name]], outputs=[ir.val(f"tiledse/shape/{i}", ir.DataType.INT64)])
        fixed.graph.append(node)
        fixed.graph.outputs.append(node.outputs[0])
        wanted[f"tiledse/shape/{i}"] = name
    feeds = zeros(fixed)
    try:
        results = run(OnnxModel(fixed, model.path), feeds, list(wanted))
    except TiledSEError:
        raise
    except Exception as error:
        text = "x".join(map(str, image.size))
        raise TiledSEError(
            f"{model.name} fails on an input of {text}: {first_line(error, 140)}; give the CxHxW that it takes "
            "with --input"
        ) from error
    return {wanted[k]: tuple(int(d) for d in shape) for k, shape in results.items()}


def zeros(graph: ir.Model) -> dict[str, np.ndarray]:
    """An input of zeros for a graph whose inputs have fixed shapes."""
    feeds = {}
    for value in graph.graph.inputs:
        if value.is_initializer() or value.shape is None or value.dtype is None:
            continue
        shape = tuple(int(side) for side in value.shape)  # type: ignore[arg-type]
        check_memory(8 * math.prod(shape), f"the input {'x'.join(map(str, shape))} of the network")
        feeds[value.name or ""] = np.zeros(shape, value.dtype.numpy())
    return feeds


def checked(model: OnnxModel, before: OnnxModel) -> onnx.ModelProto:
    """The message of a network that we made: onnx.checker and strict shape inference accept it.

    Raises:
        TiledSEError: they do not; that is a fault of ours, unless they refuse the network that it was made from too.
    """
    from onnx_ir.passes.common._c_api_utils import (
        call_onnx_api,  # the pass logs failures away; here they count
    )

    def check(proto: onnx.ModelProto) -> onnx.ModelProto:
        onnx.checker.check_model(proto)
        return proto

    def strict(proto: onnx.ModelProto) -> onnx.ModelProto:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)

    def inferred(made: OnnxModel) -> None:
        bare = made.ir.clone()
        forget(bare)
        call_onnx_api(strict, bare)

    try:
        inferred(model)
        return call_onnx_api(check, model.ir.clone())
    except Exception as error:
        try:
            inferred(before)
        except Exception as first:
            raise TiledSEError(
                f"{before.name} as it is fails the checks of ONNX: {first_line(first, 140)}; mend the file or "
                "export it again"
            ) from first
        raise TiledSEError(
            f"the converted network fails the checks of ONNX: {first_line(error, 140)}; please report this"
        ) from error
