"""Recognise an SE block that nobody registered, by what its forward computes.

The forward is traced (torch.fx) and must be ``x * gate``, where the gate meets x only through a mean over the whole
map and then passes dense layers and functions of one channel vector. What is recognised is also run: the block
and our reading of it must give the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from ..errors import first_line
from ..op.functional import scale, squeeze
from ..tile import Tile
from .calls import NORMS
from .dialects import Dialect, class_name
from .forward import ForwardReader, NoBlock

DIALECT = "traced"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, NORMS) or next(m.children(), None) is None


class Miss(NamedTuple):
    """Why a module is no SE block; ``inline``: it holds one among other things."""

    reason: str
    inline: bool = False


def recognise(block: nn.Module, shape: tuple[int, ...]) -> Dialect | Miss:
    """Read a block's structure.

    Args:
        block: The block, in eval mode.
        shape: Of the map that it was called on, 4 axes.

    Returns:
        Its dialect, or why it is no SE block.
    """
    try:
        graph = _Tracer().trace(block)
    except Exception as error:  # whatever a stranger's forward raises when it meets proxies
        return Miss(
            f"its forward cannot be traced ({first_line(error, 80)}); if it is SE, register a dialect for it"
        )
    try:
        program = ForwardReader(block, graph, shape).program()
        dialect = Dialect(DIALECT, class_name(type(block)), program, nhwc=program.nhwc)
        _verify(block, dialect, shape)
    except NoBlock as miss:
        return Miss(str(miss), miss.inline)
    return dialect


def _verify(block: nn.Module, dialect: Dialect, shape: tuple[int, ...]) -> None:
    """Run the block and our reading of it on a small map; they must agree."""
    parameter = next(block.parameters(), None)
    if parameter is None or parameter.is_meta:
        return
    # A fixed window (AvgPool2d) wants the real size; others are checked on a small map.
    channels = shape[3] if dialect.nhwc else shape[1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 5, 6, generator=generator).to(parameter)
    try:
        expected = _run_block(block, x, dialect.nhwc)
    except (RuntimeError, ValueError):
        try:
            x = torch.randn(1, channels, *_map_size(shape, dialect.nhwc), generator=generator).to(parameter)
            expected = _run_block(block, x, dialect.nhwc)
        except (RuntimeError, ValueError):
            return
    whole = Tile.parse("HxW")
    with torch.no_grad():
        try:
            got = scale(x, dialect.excite(block, squeeze(x, whole)), whole)
        except Exception as error:
            raise NoBlock(f"read as SE it fails: {first_line(error, 80)}") from None
    tolerance = 1e-2 if x.dtype in (torch.float16, torch.bfloat16) else 1e-4
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        raise NoBlock("read as SE it gives other numbers than its own forward")


def _map_size(shape: tuple[int, ...], nhwc: bool) -> tuple[int, int]:
    return (shape[1], shape[2]) if nhwc else (shape[2], shape[3])


def _run_block(block: nn.Module, x: Tensor, nhwc: bool) -> Tensor:
    with torch.no_grad():
        if nhwc:
            return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return block(x.clone())
