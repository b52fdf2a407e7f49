"""What two networks are compared on, and how far apart two results are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .model import OnnxModel, check_memory
from .shapes import Image

# The largest relative difference that rounding makes of a block, by type.
_ROUNDING = {ir.DataType.FLOAT: 2e-4, ir.DataType.DOUBLE: 1e-8}
HALF = 2e-2


def rounding(kind: ir.DataType) -> float:
    """What rounding may make of a block in a type of numbers, relative to its largest number."""
    return _ROUNDING.get(kind, HALF)


def relative(expected: np.ndarray, got: np.ndarray) -> float:
    """max |expected - got| / max |expected|; infinite where shapes differ or a number is not finite on one side."""
    if expected.shape != got.shape:
        return float("inf")
    if not expected.size or expected.dtype.kind not in "fiu":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    top = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return distance(expected, got) / (top or 1.0)


def distance(expected: np.ndarray, got: np.ndarray) -> float:
    """max |expected - got|; infinite where shapes differ or a number is not finite on one side."""
    if expected.shape != got.shape or expected.dtype.kind not in "fiu":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0))


def feeds_of(
    model: OnnxModel, image: Image, shape: Sequence[int], x: np.ndarray | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs for a network.

    Args:
        model: The network.
        image: The input that takes images.
        shape: Of a batch of images, in that input's own layout.
        x: The batch; standard normal numbers, if left out.
        seed: For the random numbers.

    Returns:
        By name. Other inputs get numbers between a half and one and a half, since one may be a divisor; zeros where
        they are whole numbers.
    """
    random = np.random.default_rng(seed)
    feeds = {}
    for value in model.ir.graph.inputs:
        if value.is_initializer() or value.shape is None or value.dtype is None:
            continue
        dtype = value.dtype.numpy()
        if value.name == image.name:
            check_memory(8 * math.prod(shape), f"the input {'x'.join(map(str, shape))} of {model.name}")
            given = random.standard_normal(tuple(shape)) if x is None else x
            given = np.abs(given * 64) if x is None and dtype.kind in "iu" else given
            feeds[value.name] = np.ascontiguousarray(given).astype(dtype)
            continue
        # A free first axis is the batch.
        dims = [
            d if isinstance(d, int) and d > 0 else 1 if i else shape[0] for i, d in enumerate(value.shape)
        ]
        check_memory(8 * math.prod(dims), f"the input '{value.name}' of {model.name}")
        other = random.uniform(0.5, 1.5, dims) if dtype.kind == "f" else np.zeros(dims)
        feeds[value.name or ""] = other.astype(dtype)
    return feeds
