"""Operators that look at windows of frames: convolutions and pools of sound (N, C, T) and of clips (N, C, D, H, W)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..builder import Builder, Ref
from ..maps import SAME, Window
from .table import Fx, argument, argument_of, on, padded

_CONVOLUTIONS: Any = {1: torch.conv1d, 3: torch.conv3d}
_MAXIMA: Any = {1: F.max_pool1d, 3: F.max_pool3d}
_MEANS: Any = {1: F.avg_pool1d, 3: F.avg_pool3d}


@on("conv1d", "conv3d")
def conv_over_frames(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A convolution over frames; others, transposed ones among them, take the whole."""
    args, kwargs = b.filled(fx)
    weight, bias = args[1], argument_of(args, 2)
    general = str(fx.target).startswith("aten.convolution")
    ref = _frames(b, fx)
    if ref is None or kwargs or not isinstance(weight, Tensor) or (general and args[6]):
        return b.whole(fx, pick)
    axes = weight.dim() - 2
    stride, dilation = _sides(argument_of(args, 3, 1), axes), _sides(argument_of(args, 5, 1), axes)
    groups = args[8] if general else argument_of(args, 6, 1)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:])]
    given = argument_of(args, 4, 0)
    if given == "same":
        if any((span - 1) % 2 for span in spans):
            return b.whole(fx, pick)
        given = [(span - 1) // 2 for span in spans]
    padding = _sides(0 if given == "valid" else given, axes)
    window = Window(spans[0], stride[0], padding[0], padding[0])
    convolution, rest = _CONVOLUTIONS[axes], (0, *padding[1:])

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        frames = parts[0] if window == SAME else padded(parts[0], window, lo, hi)
        made: Tensor = convolution(frames, weight, bias, stride, rest, dilation, groups)
        return made

    return b.add(fx, "row" if window == SAME else "window", [ref], [window], run, 2, pick, fresh=True)


@on("max_pool1d", "max_pool3d", "max_pool3d_with_indices")
def max_over_frames(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A maximum; the padding is minus infinity."""
    ref = _frames(b, fx)
    if ref is None or pick:
        return b.whole(fx, pick)
    axes = len(b.values[ref.index].shape) - 2
    kernel = _sides(fx.args[1], axes)
    stride = _sides(argument(fx, 2, None) or kernel, axes)
    padding, dilation = _sides(argument(fx, 3, 0), axes), _sides(argument(fx, 4, 1), axes)
    ceil = bool(argument(fx, 5, False))
    window = Window(dilation[0] * (kernel[0] - 1) + 1, stride[0], padding[0], padding[0], ceil)
    pool, rest = _MAXIMA[axes], (0, *padding[1:])

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        made: Tensor = pool(
            padded(parts[0], window, lo, hi, float("-inf")), kernel, stride, rest, dilation, ceil
        )
        return made

    return b.add(fx, "window", [ref], [window], run, 2, pick, fresh=True, outside=float("-inf"))


@on("avg_pool1d", "avg_pool3d")
def mean_over_frames(b: Builder, fx: Fx, pick: Any) -> Ref:
    """A mean over windows that do not reach beyond the first and the last frame; others take the whole."""
    ref = _frames(b, fx)
    if ref is None:
        return b.whole(fx, pick)
    axes = len(b.values[ref.index].shape) - 2
    kernel = _sides(fx.args[1], axes)
    stride = _sides(argument(fx, 2, None) or kernel, axes)
    padding, ceil, counted = _sides(argument(fx, 3, 0), axes), argument(fx, 4, False), argument(fx, 5, True)
    if padding[0] or ceil or argument(fx, 6, None) is not None:
        return b.whole(fx, pick)
    pool = _MEANS[axes]

    def run(parts: list[Tensor], lo: int, hi: int) -> Tensor:
        made: Tensor = pool(parts[0], kernel, stride, padding, False, counted)
        return made

    return b.add(fx, "window", [ref], [Window(kernel[0], stride[0])], run, 2, pick, fresh=True)


def _frames(b: Builder, fx: Fx) -> Ref | None:
    """What a window slides over, if frames are the third of three or five axes and it is the only operand."""
    refs, _ = b.call(fx)
    value = b.values[refs[0].index]
    return refs[0] if len(refs) == 1 and value.row_dim == 2 and len(value.shape) in (3, 5) else None


def _sides(given: Any, axes: int) -> tuple[int, ...]:
    """A number, or a list of one or of all, as one for each axis."""
    numbers = [given] if isinstance(given, int) else list(given)
    return tuple(numbers * axes if len(numbers) == 1 else numbers)
