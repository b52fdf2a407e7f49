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
    """A map that is to be squeezed, in a trace by torch.jit: a map of another size is to fail there.

    A trace keeps windows of one size, and runs maps of others: some give wrong numbers and no error. So the map gets
    an ``expand`` to its own size, which is no work and refuses others but a side of one, which ``kept`` refuses.
    An ONNX file gets nothing, for its sides are fixed unless ``dynamic_axes`` frees them.

    Raises:
        TiledSEError: torch.onnx.export traces with ``dynamic_axes`` for more than the batch.
    """
    if not torch.onnx.is_in_onnx_export():
        return x.expand(-1, -1, *sides(x))
    if (name := _freed()) is not None:
        raise TiledSEError(
            "torch.onnx.export with dynamo=False traces tiles for one size, and its file would be wrong at others: "
            f"free the batch of '{name}' only in dynamic_axes, or use dynamo=True with dynamic_shapes, or "
            "`tiledse convert`"
        )
    return x


def kept(x: Tensor) -> Tensor:
    """The same map where it is scaled: a ``view`` refuses another number of elements, and so a side of one."""
    return x if torch.onnx.is_in_onnx_export() else x.view(*x.shape[:2], *sides(x))


def _freed() -> str | None:
    """The input of which ``dynamic_axes`` of the ONNX export that runs free a side; the exporter keeps them to itself.

    Inputs of fewer than three axes are no maps. Negative axes are left out: torch keeps those fixed.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("torch.onnx"):
            known = frame.f_locals
            names, given = known.get("input_names") or (), known.get("args")
            tensors = given if isinstance(given, tuple) else (given,)
            few = {n for n, t in zip(names, tensors) if isinstance(t, Tensor) and t.dim() < 3}
            for name, axes in dict(known.get("dynamic_axes") or {}).items():
                if name not in {*few, *(known.get("output_names") or ())} and any(axis > 0 for axis in axes):
                    return str(name)
        frame = frame.f_back  # type: ignore[assignment]
    return None
