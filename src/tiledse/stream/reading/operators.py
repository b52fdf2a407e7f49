"""Operators of ONNX by those of torch: a function for each, from its node and its operands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from ...onnx.nodes import integer, ints, string
from ..resizing import corners

# Operands are tensors, arrays of whole numbers that are known, or None.
Operator = Callable[..., Any]
TABLE: dict[str, Operator] = {}


# Operators whose operands behind the first are numbers that say what is done, and no maps.
BY_NUMBERS = {
    "Clip", "Pad", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Resize", "Slice", "Split", "Squeeze",
    "Unsqueeze", "Upsample",
}  # fmt: skip


class Unread(Exception):
    """A form of an operator that is not read."""


def on(*names: str) -> Callable[[Operator], Operator]:
    """Enter an operator into the table."""

    def enter(operator: Operator) -> Operator:
        TABLE.update(dict.fromkeys(names, operator))
        return operator

    return enter


def number(node: ir.Node, name: str, default: float) -> float:
    """A number from a node's attributes."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def known(x: Any, what: str) -> list[Any]:
    """An operand that must be known before the network runs."""
    if isinstance(x, Tensor) or x is None:
        raise Unread(f"its {what} are computed from the image")
    return list(np.asarray(x).reshape(-1).tolist())


for _name, _function in {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Erf": torch.erf, "Exp": torch.exp,
    "Abs": torch.abs,
    "Sqrt": torch.sqrt, "Neg": torch.neg, "Log": torch.log, "Softsign": F.softsign, "Mish": F.mish,
    "HardSwish": F.hardswish, "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil,
}.items():  # fmt: skip
    TABLE[_name] = lambda node, x, f=_function: f(x)
for _name, _two in {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow, "Max": torch.maximum,
    "Min": torch.minimum, "MatMul": torch.matmul,
}.items():  # fmt: skip
    TABLE[_name] = lambda node, x, y, f=_two: f(x, y)


@on("Identity", "Dropout")
def identity(node: ir.Node, x: Tensor, *rest: Any) -> Any:
    """Dropout is off where a network runs."""
    return x


@on("Cast")
def cast(node: ir.Node, x: Tensor) -> Tensor:
    """To another float; whole numbers are not read."""
    kinds = {1: torch.float32, 10: torch.float16, 11: torch.float64}
    to = integer(node, "to", 1)
    if to not in kinds:
        raise Unread("it makes whole numbers of a map")
    return x.to(kinds[to])


@on("HardSigmoid")
def hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
    """A clipped line."""
    return torch.clamp(number(node, "alpha", 0.2) * x + number(node, "beta", 0.5), 0, 1)


@on("LeakyRelu")
def leaky_relu(node: ir.Node, x: Tensor) -> Tensor:
    """See torch's."""
    return F.leaky_relu(x, number(node, "alpha", 0.01))


@on("Elu")
def elu(node: ir.Node, x: Tensor) -> Tensor:
    """See torch's."""
    return F.elu(x, number(node, "alpha", 1.0))


@on("Gelu")
def gelu(node: ir.Node, x: Tensor) -> Tensor:
    """See torch's."""
    return F.gelu(x, approximate=string(node, "approximate", "none"))


@on("Softplus")
def softplus(node: ir.Node, x: Tensor) -> Tensor:
    """Without torch's threshold."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


@on("PRelu")
def prelu(node: ir.Node, x: Tensor, slope: Tensor) -> Tensor:
    """By channel, or one for all."""
    return torch.where(x < 0, x * slope, x)


@on("Clip")
def clip(node: ir.Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Between two numbers, which stood among the attributes before opset 11."""
    if "min" in node.attributes or "max" in node.attributes:
        return torch.clamp(x, number(node, "min", -np.inf), number(node, "max", np.inf))
    bounds = [None if b is None else float(known(b, "bounds")[0]) for b in (low, high)]
    return torch.clamp(x, *bounds) if any(b is not None for b in bounds) else x


@on("BatchNormalization")
def batch_norm(
    node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """With the statistics that are stored."""
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, number(node, "epsilon", 1e-5))


_BY_AXES: dict[str, tuple[Any, ...]] = {
    "Conv": (F.conv1d, F.conv2d, F.conv3d),
    "ConvTranspose": (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    "MaxPool": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
    "AveragePool": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
}


def _pads(node: ir.Node, x: Tensor, kernel: tuple[int, ...], stride: Any, dilation: Any) -> list[int]:
    """Padding before each axis, and then after each."""
    auto, none = string(node, "auto_pad", "NOTSET"), (0,) * 2 * len(kernel)
    if auto in ("NOTSET", ""):
        return list(ints(node, "pads", none))
    if auto == "VALID":
        return list(none)
    first, last = [], []
    for side, k, s, d in zip(x.shape[2:], kernel, stride, dilation):
        more = max(0, (-(-int(side) // s) - 1) * s + d * (k - 1) + 1 - int(side))
        low = more // 2 if auto == "SAME_UPPER" else more - more // 2
        first.append(low)
        last.append(more - low)
    return first + last


def _window(
    node: ir.Node, x: Tensor, kernel: tuple[int, ...]
) -> tuple[Any, Any, Any, tuple[int, ...], list[int]]:
    """Torch's operator, stride, dilation, padding before, and after where it is another."""
    axes = x.dim() - 2
    if axes not in (1, 2, 3) or len(kernel) != axes:
        raise Unread("it is no operator on maps of sound, images or volumes")
    one = (1,) * axes
    stride, dilation = ints(node, "strides", one), ints(node, "dilations", one)
    pads = _pads(node, x, kernel, stride, dilation)
    return _BY_AXES[node.op_type][axes - 1], stride, dilation, tuple(pads[:axes]), pads[axes:]


def _put_on(
    x: Tensor, before: tuple[int, ...], after: list[int], value: float = 0.0
) -> tuple[Tensor, tuple[int, ...]]:
    """The map with padding of its own, and none that is left."""
    flat = [n for pair in zip(reversed(before), reversed(after)) for n in pair]
    return F.pad(x, flat, value=value), (0,) * len(before)


@on("Conv")
def conv(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """A convolution; padding that differs from side to side is padded first."""
    run, stride, dilation, before, after = _window(node, x, tuple(weight.shape[2:]))
    if list(before) != after:
        x, before = _put_on(x, before, after)
    return run(x, weight, bias, stride, before, dilation, integer(node, "group", 1))


@on("ConvTranspose")
def conv_transpose(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """A transposed convolution."""
    run, stride, dilation, before, after = _window(node, x, tuple(weight.shape[2:]))
    more = ints(node, "output_padding", (0,) * len(before))
    if list(before) != after or "output_shape" in node.attributes:
        raise Unread("its padding differs from side to side")
    return run(x, weight, bias, stride, before, more, integer(node, "group", 1), dilation)


@on("MaxPool")
def max_pool(node: ir.Node, x: Tensor) -> Any:
    """A maximum over windows; of padding that differs from side to side, the lowest number is put there first."""
    kernel = ints(node, "kernel_shape", ())
    run, stride, dilation, before, after = _window(node, x, kernel)
    if len(node.outputs) > 1 and list(node.outputs[1].uses()):
        raise Unread("its places are used")
    if list(before) != after or any(2 * pad > size for pad, size in zip(before, kernel)):
        x, before = _put_on(x, before, after, torch.finfo(x.dtype).min)
    return run(x, kernel, stride, before, dilation, bool(integer(node, "ceil_mode", 0)))


@on("AveragePool")
def average_pool(node: ir.Node, x: Tensor) -> Any:
    """A mean over windows."""
    kernel = ints(node, "kernel_shape", ())
    run, stride, dilation, before, after = _window(node, x, kernel)
    ceil, counted = bool(integer(node, "ceil_mode", 0)), bool(integer(node, "count_include_pad", 0))
    if list(before) != after or set(dilation) != {1} or (ceil and counted):
        raise Unread("its padding differs from side to side, or its windows are spread")
    return run(x, kernel, stride, before, ceil, counted)


@on("GlobalAveragePool")
def global_average_pool(node: ir.Node, x: Tensor) -> Tensor:
    """The mean of a map."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@on("GlobalMaxPool")
def global_max_pool(node: ir.Node, x: Tensor) -> Tensor:
    """The maximum of a map."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@on("ReduceMean", "ReduceMax", "ReduceSum")
def reduced(node: ir.Node, x: Tensor, axes: Any = None) -> Tensor:
    """Over some axes, which are an operand in newer opsets."""
    given = ints(node, "axes", None) if axes is None else tuple(int(a) for a in known(axes, "axes"))
    dims = list(range(x.dim())) if given is None else list(given)
    keep = bool(integer(node, "keepdims", 1))
    if node.op_type == "ReduceMax":
        return x.amax(dims, keep)
    return x.mean(dims, keep) if node.op_type == "ReduceMean" else x.sum(dims, keep)


@on("Concat")
def concat(node: ir.Node, *parts: Tensor) -> Tensor:
    """Side by side."""
    return torch.cat(list(parts), integer(node, "axis", 0))


@on("Softmax")
def softmax(node: ir.Node, x: Tensor) -> Tensor:
    """Along one axis."""
    axis = integer(node, "axis", -1)
    if axis not in (-1, x.dim() - 1):
        raise Unread("its axis means something else in older opsets")
    return torch.softmax(x, axis)


@on("Transpose")
def transpose(node: ir.Node, x: Tensor) -> Tensor:
    """Axes in another order."""
    return x.permute(*ints(node, "perm", tuple(reversed(range(x.dim())))))


@on("Reshape")
def reshape(node: ir.Node, x: Tensor, shape: Any) -> Tensor:
    """The same elements in another shape; 0 is the axis as it is."""
    sides = [int(side) or x.shape[i] for i, side in enumerate(known(shape, "sides"))]
    return x.reshape(sides)


@on("Flatten")
def flatten(node: ir.Node, x: Tensor) -> Tensor:
    """To two axes."""
    axis = integer(node, "axis", 1) % (x.dim() + 1)
    return x.flatten(1) if axis == 1 else x.reshape(int(np.prod(x.shape[:axis])), -1)


@on("Squeeze", "Unsqueeze")
def squeezed(node: ir.Node, x: Tensor, axes: Any = None) -> Tensor:
    """Axes of one left out or put in."""
    given = ints(node, "axes", None) if axes is None else tuple(int(a) for a in known(axes, "axes"))
    if node.op_type == "Squeeze":
        return x.squeeze() if given is None else x.squeeze(tuple(given))
    rank = x.dim() + len(given)
    for axis in sorted(a % rank for a in given):
        x = x.unsqueeze(axis)
    return x


@on("Gemm")
def gemm(node: ir.Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """A dense layer."""
    a = a.T if integer(node, "transA", 0) else a
    b = b if integer(node, "transB", 0) else b.T
    alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
    if c is None or c.dim() == 1:
        bias = None if c is None else c * beta if beta != 1 else c
        return F.linear(a, b * alpha if alpha != 1 else b, bias)
    return alpha * (a @ b.T) + beta * c


@on("Slice")
def cut(
    node: ir.Node, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Tensor:
    """Some rows, columns or channels."""
    first = known(starts, "starts") if starts is not None else list(ints(node, "starts", ()))
    last = known(ends, "ends") if ends is not None else list(ints(node, "ends", ()))
    dims = known(axes, "axes") if axes is not None else list(ints(node, "axes", tuple(range(len(first)))))
    by = known(steps, "steps") if steps is not None else [1] * len(first)
    for low, high, dim, step in zip(first, last, dims, by):
        if step < 1:
            raise Unread("it turns a map about")
        x = torch.ops.aten.slice.Tensor(x, int(dim), int(low), min(int(high), 1 << 60), int(step))
    return x


@on("Split")
def split(node: ir.Node, x: Tensor, sizes: Any = None) -> Any:
    """Parts along an axis."""
    axis = integer(node, "axis", 0)
    given = known(sizes, "sizes") if sizes is not None else list(ints(node, "split", ()))
    if not given:
        each = -(-x.shape[axis] // len(node.outputs))
        return torch.split(x, each, axis)
    return torch.split(x, [int(n) for n in given], axis)


@on("Pad")
def pad(node: ir.Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    """Constant padding."""
    if string(node, "mode", "constant") != "constant":
        raise Unread("it repeats or mirrors the edge")
    sides = [int(n) for n in (known(pads, "pads") if pads is not None else ints(node, "pads", ()))]
    dims = list(range(x.dim())) if axes is None else [int(a) % x.dim() for a in known(axes, "axes")]
    by_dim = {dim: (sides[i], sides[i + len(dims)]) for i, dim in enumerate(dims)}
    flat = [n for dim in reversed(range(x.dim())) for n in by_dim.get(dim, (0, 0))]
    fill = float(known(value, "value")[0]) if value is not None else number(node, "value", 0.0)
    return F.pad(x, flat, value=fill) if any(flat) else x


@on("Resize", "Upsample")
def resize(node: ir.Node, x: Tensor, *rest: Any) -> Tensor:
    """Nearest and linear interpolation of maps, where torch has the same."""
    scales, sizes = _scales(node, x, rest)
    mode = string(node, "mode", "nearest")
    where = "asymmetric" if node.op_type == "Upsample" else string(
        node, "coordinate_transformation_mode", "half_pixel"
    )  # fmt: skip
    whole = all(scale >= 1 and float(scale).is_integer() for scale in scales)
    if mode == "nearest":
        rounding = (
            "floor" if node.op_type == "Upsample" else string(node, "nearest_mode", "round_prefer_floor")
        )
        down = where == "asymmetric" and rounding == "floor"
        if not down and not (whole and where in ("half_pixel", "pytorch_half_pixel") and "round" in rounding):
            raise Unread(f"nearest interpolation by {where} and {rounding} is not torch's")
        return (
            F.interpolate(x, size=sizes)
            if sizes is not None
            else F.interpolate(x, scale_factor=tuple(scales))
        )
    if mode in ("linear", "bilinear") and where == "asymmetric" and whole:
        return corners(x, int(scales[0]), int(scales[1]))
    if mode not in ("linear", "bilinear") or where not in (
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
    ):
        raise Unread(f"{mode} interpolation by {where} is not torch's")
    aligned = where == "align_corners"
    if sizes is not None:
        return F.interpolate(x, size=sizes, mode="bilinear", align_corners=aligned)
    return F.interpolate(x, scale_factor=tuple(scales), mode="bilinear", align_corners=aligned)


def _scales(node: ir.Node, x: Tensor, rest: tuple[Any, ...]) -> tuple[list[float], list[int] | None]:
    """Factors of rows and columns, and the size where that is what the file says."""
    given = rest[0] if node.op_type == "Upsample" or len(rest) == 1 else rest[1] if len(rest) > 1 else None
    scales = [] if given is None else [float(s) for s in known(given, "scales")]
    if scales:
        if len(scales) != 4 or scales[:2] != [1.0, 1.0]:
            raise Unread("it resizes something else than rows and columns")
        return scales[2:], None
    sizes = [int(s) for s in known(rest[2] if len(rest) > 2 else None, "sizes")]
    if len(sizes) != 4 or sizes[1] != x.shape[1]:
        raise Unread("it resizes something else than rows and columns")
    return [sizes[2] / x.shape[2], sizes[3] / x.shape[3]], sizes[2:]
