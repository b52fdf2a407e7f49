"""What a trace by torch.jit holds for: one size of a map, whatever exporters say of it afterwards."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor

from ..errors import TiledSEError


def sides(x: Tensor) -> tuple[int, int]:
    """Rows and columns of a map; in a trace by torch.jit, which holds for one size, the numbers that they are."""
    if not torch.jit.is_tracing():
        height, width = x.shape[2:]
        return height, width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return int(x.shape[2]), int(x.shape[3])


def held(x: Tensor) -> Tensor:
    """A map that is cut into tiles, in a trace by torch.jit: a map of another size is to fail there.

    A trace keeps windows of one size, and runs maps of others: some give wrong numbers and no error. So it gets an
    ``expand`` to its own size, which is no work and refuses others. An ONNX file gets nothing, for its sides are
    fixed unless ``dynamic_axes`` frees them.

    Raises:
        TiledSEError: torch.onnx.export traces with ``dynamic_axes`` for more than the batch.
    """
    if not torch.onnx.is_in_onnx_export():
        return x.expand(-1, -1, *sides(x))
    if _sides_are_freed():
        raise TiledSEError(
            "torch.onnx.export with dynamo=False traces tiles for one size, and its file would be wrong at others: "
            "free the batch only in dynamic_axes, or use dynamo=True with dynamic_shapes, or `tiledse convert`"
        )
    return x


def _sides_are_freed() -> bool:
    """Whether the ONNX export that runs was given ``dynamic_axes`` for a side of an input; it keeps them to itself."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("torch.onnx"):
            axes, outputs = frame.f_locals.get("dynamic_axes"), frame.f_locals.get("output_names") or ()
            for name, given in dict(axes or {}).items():
                if name not in outputs and any(axis != 0 for axis in given):
                    return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
