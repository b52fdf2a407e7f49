"""Tiled squeeze-and-excite as the paper writes it: squeeze, excite, scale.

Source: Vosco et al., "Tiled Squeeze-and-Excite", 2021, section 3.1 and figure A1. Where text and code differ, the
code is followed: rows are repeated and cropped, so row i belongs to tile i // h.

The formula (formula.py) is plain operators on views, which compilers and exporters trace and fuse. The public
functions take it, or the same numbers faster:

==========================================================  ====================================================
the map and who asks                                        the way
==========================================================  ====================================================
torch.compile on a CPU, two layers as excitation            the operator by name where that is faster: library.py
torch.compile else, torch.export, torch.func, a subclass    the formula
of Tensor
two layers, on a GPU with Triton: row strips (R to 256)     whole.py, fused.py: one kernel, which reads the map once
two layers, on a CPU with TILEDSE_CPP=1, float32            whole.py, compiled.py: by units that stay in the cache
two layers else, but no gradients of less than 0.25 MB      whole.py, composed.py: as below, in one autograd node
other excitations, no gradient recorded                     squeezing.py, scaling.py: by layout and tile
gradients, maps of half a megabyte and up                   autograd.Squeeze, autograd.Scale about the excitation
gradients, smaller maps; squeeze and scale alone            the same; the formula's scale for ragged strips
a squeeze that is no mean                                   the formula's squeeze, and scale as above
==========================================================  ====================================================

"Two layers" are 1x1 convolutions with biases, known activations and no hooks (two_layers.py), not in training under
autocast. TILEDSE_TRITON=0 leaves Triton out, =1 takes it wherever it can run.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, fx

from ..errors import TiledSEError
from ..tile import Tile
from . import compiled, formula, scaling, squeezing, whole
from . import library as library  # registers torch.ops.tiledse
from .autograd import Link, Scale, Squeeze
from .formula import Reduce, mean
from .grids import is_autocast, is_channels_last, is_dense, is_eager, layout
from .two_layers import two_layers

# Below, two nodes of Python take longer than the passes over the map that they save: torch's own gradients of
# squeeze and scale are 1.1 to 1.3 times as fast at 0.15 to 0.25 MB, and 1.2 times slower at 0.8 MB.
SMALL_BYTES = 1 << 19
# So does even the one node of composed.py here: 445 us, not 383, for a step on 0.15 MB; as long on 0.25 MB.
TINY_BYTES = 1 << 18

Excite = Callable[[Tensor], Tensor]


def squeeze(x: Tensor, tile: str | Tile, reduce: Reduce = mean) -> Tensor:
    """Descriptors of the tiles.

    Args:
        x: Map, (N, C, H, W), of any floating type and memory layout.
        tile: The tile.
        reduce: What a tile is squeezed with, over the axes given to it.

    Returns:
        (N, C, rows, cols): one descriptor a tile, over the elements it has, ragged tiles included;
        (N, C, 1, 1) for ``upper`` and ``middle``.

    Raises:
        TiledSEError: x is no map, or is empty in H or W.

    Example:
        >>> squeeze(torch.arange(6.0).view(1, 1, 3, 2), "2xW").flatten().tolist()
        [1.5, 4.5]
    """
    tile = Tile.parse(tile)
    if isinstance(x, fx.Proxy):
        # torch.fx knows no shapes: the call stands in its graph as it is.
        given = (x, str(tile)) if reduce is mean else (x, str(tile), reduce)
        return x.tracer.create_proxy("call_function", squeeze, given, {})
    _check_map(x)
    return squeezing.squeeze(x, tile) if reduce is mean and is_eager(x) else formula.squeeze(x, tile, reduce)


def scale(x: Tensor, gates: Tensor, tile: str | Tile, *, inplace: bool = False) -> Tensor:
    """Multiply each tile by its gate: the gate is broadcast over a view, never repeated in memory.

    Args:
        x: Map, (N, C, H, W).
        gates: (N, C, rows, cols), as many as ``tile`` has over this map.
        tile: The tile.
        inplace: Write into x, where no gradient is recorded.

    Returns:
        (N, C, H, W), in the memory layout of x; x itself with ``inplace``.

    Raises:
        TiledSEError: the gates are not those of the tile's grid, or ``inplace`` while a gradient is recorded.

    Example:
        >>> scale(torch.ones(1, 1, 3, 2), torch.tensor([2.0, 5.0]).view(1, 1, 2, 1), "2xW")[0, 0, :, 0].tolist()
        [2.0, 2.0, 5.0]
    """
    tile = Tile.parse(tile)
    if isinstance(x, fx.Proxy):
        options = {"inplace": True} if inplace else {}
        return x.tracer.create_proxy("call_function", scale, (x, gates, str(tile)), options)
    _check_map(x)
    _check_gates(x, gates, tile)
    recorded = torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad)
    _check_inplace(inplace and recorded)
    if is_eager(x) and (not recorded or scaling.fills_strips(tile, x)):
        return scaling.scale(x, gates, tile, inplace)
    scaled = formula.scale(x, gates, tile)
    if inplace:
        return x.copy_(scaled)
    # What is put together from ragged tiles may come out in the other layout.
    return scaled.contiguous(memory_format=layout(x)) if is_eager(x) and is_dense(x) else scaled


def tiled_squeeze_excite(
    x: Tensor, excite: Excite, tile: str | Tile, reduce: Reduce = mean, *, inplace: bool = False
) -> Tensor:
    """Tiled squeeze-and-excite (figure A1): each tile is scaled by a gate computed from the tile alone.

    Args:
        x: Map, (N, C, H, W), of any floating type, contiguous or channels_last.
        excite: Descriptors (N, C, rows, cols) to gates of the same shape, such as two 1x1 convolutions
            with their activation and gate function.
        tile: The tile; ``HxW`` is squeeze-and-excite.
        reduce: What a tile is squeezed with; the mean, unless told otherwise.
        inplace: Write into x, where no gradient is recorded. Half the memory traffic; x is lost.

    Returns:
        (N, C, H, W), in the memory layout and type of x; x itself with ``inplace``.

    Raises:
        TiledSEError: x is no map, the excitation changes the grid of tiles, or ``inplace`` while a gradient is
            recorded.

    Example:
        >>> x = torch.randn(2, 8, 20, 12)
        >>> tiled_squeeze_excite(x, torch.sigmoid, "7xW").shape
        torch.Size([2, 8, 20, 12])
    """
    tile = Tile.parse(tile)
    if isinstance(x, fx.Proxy):
        return scale(x, excite(squeeze(x, tile, reduce)), tile, inplace=inplace)
    if reduce is mean and x.dim() == 4:
        done = _as_one(x, excite, tile, inplace)
        if done is not None:
            return done
    excite = direct(excite, x)
    if torch.is_grad_enabled() and x.nbytes >= SMALL_BYTES and reduce is mean and is_eager(x):
        _check_map(x)
        link = Link()
        x, descriptors = Squeeze.apply(x, tile, link)
        gates = excite(descriptors)
        if torch.promote_types(x.dtype, gates.dtype) == x.dtype and (x.requires_grad or gates.requires_grad):
            _check_gates(x, gates, tile)
            _check_inplace(inplace)
            gates = gates.to(x.dtype).expand(x.shape[0], -1, -1, -1)
            return Scale.apply(x, gates, tile, link)
    else:
        descriptors = squeeze(x, tile, reduce)
        gates = excite(descriptors)
    return scale(x, gates, tile, inplace=inplace)


def direct(excite: Excite, x: Tensor) -> Excite:
    """The same excitation of descriptors of x without calls of its layers, where it is two of them; else as it is.

    For squeezes that ``tiled_squeeze_excite`` does not have: descriptors that were corrected, say.

    Example:
        >>> block, x = torch.nn.Identity(), torch.randn(1, 8, 4, 4)
        >>> direct(block.forward, x) == block.forward
        True
    """
    if x.dim() != 4 or not is_eager(x) or is_autocast(x):
        return excite
    layers = two_layers(excite)
    return layers.excite if layers is not None and layers.fit(x) else excite


def _as_one(x: Tensor, excite: Excite, tile: Tile, inplace: bool) -> Tensor | None:
    """The operator with its excitation inside, where that is the way to take (see the table above)."""
    traced = torch.compiler.is_compiling()
    if traced:
        if not library_is_on(x):
            return None
    elif not is_eager(x):
        return None
    layers = two_layers(excite)
    if layers is None or not layers.fit(x) or not x.shape[2] or not x.shape[3]:
        return None
    if traced:
        return torch.ops.tiledse.squeeze_excite(x, *layers.weights, str(tile), layers.act, layers.gate)[0]
    if torch.is_grad_enabled():
        if is_autocast(x):
            return None  # which types its layers get is autocast's choice
        if x.nbytes < TINY_BYTES and not whole.has_kernel(x, tile, layers):
            return None
        _check_inplace(inplace and any(v.requires_grad for v in (x, *layers.weights)))
    return whole.run(x, layers, tile, inplace)


def library_is_on(x: Tensor) -> bool:
    """Whether a compiler or exporter gets the operator by name (library.py), not the formula.

    TILEDSE_LIBRARY=1 and 0 say always and never. Else torch.compile gets it on a CPU where that is faster: for
    gradients, which take 5.5 to 7.3 copies by the operator and 10 to 19 compiled, in channels_last, 2.2 to 3.4 and 3.0
    to 5.8, and with the C++ kernels (three maps, one thread; in NCHW without gradients the compiled formula has 1.8 to
    2.1 and the operator 2.1 to 2.7, 1.5 to 2.6 in C++). On a GPU neither was measured under torch.compile. An exported
    program is the formula, which runs where tiledse is not installed.
    """
    if is_autocast(x):
        return False  # which types its layers get is autocast's choice
    asked = os.environ.get("TILEDSE_LIBRARY")
    if asked in ("0", "1"):
        return asked == "1"
    if torch.compiler.is_exporting() or x.device.type != "cpu":
        return False
    if x.numel() * x.element_size() < SMALL_BYTES:  # a compiler has no nbytes of symbolic sizes
        return False
    return torch.is_grad_enabled() or is_channels_last(x) or compiled.asked(x)


def _check_map(x: Tensor) -> None:
    if x.dim() != 4 or 0 in formula.sides(x):
        raise TiledSEError(
            f"expected a map of shape (N, C, H, W) with at least one row and one column, got {tuple(x.shape)}"
        )


def _check_gates(x: Tensor, gates: Tensor, tile: Tile) -> None:
    if torch.jit.is_tracing():
        return  # sizes are tensors there
    grid = tile.grid(x.shape[2], x.shape[3])
    if gates.dim() != 4 or tuple(gates.shape[2:]) != grid or gates.shape[1] != x.shape[1]:
        raise TiledSEError(
            f"gates for a map of {tuple(x.shape)} and tile {tile}: expected "
            f"{(x.shape[0], x.shape[1], *grid)}, got {tuple(gates.shape)}; an excitation keeps the grid of tiles"
        )


def _check_inplace(refused: bool) -> None:
    if refused:
        raise TiledSEError(
            "inplace would overwrite a map that its gradient needs; leave it out, or run under torch.no_grad()"
        )
