"""Tiled squeeze-and-excite as the paper writes it: squeeze, excite, scale.

Source: Vosco et al., "Tiled Squeeze-and-Excite", 2021, section 3.1 and figure A1. Where text and code differ, the
code is followed: rows are repeated and cropped, so row i belongs to tile i // h.

A map takes one of three ways; the first is one of the kernels of choosing.py:

==========================================================  ====================================================
the excitation, and who asks                                the way
==========================================================  ====================================================
two 1x1 convolutions with biases, a known activation and    the registered operator (registered.py)
gate, no hooks (excitation.py); eager or ``torch.compile``
any other; eager                                            PyTorch's squeeze and scale about it, in two autograd
                                                            nodes (by_pytorch.py)
any; exporters, other tracers, ``torch.func``, a subclass   the formula in plain operators (formula.py)
of Tensor, a squeeze that is no mean
==========================================================  ====================================================
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from ..errors import TiledSEError
from ..tile import Tile
from . import by_pytorch, formula, registered
from .choosing import tell
from .excitation import TwoLayers, two_layers
from .formula import Reduce, mean
from .grids import by_rows, is_autocast, is_dense, is_eager, layout, own_of, running, seen
from .traces import sides

Excite = Callable[[Tensor], Tensor]
_ROWS = Tile(1, None)


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
    _check_one_map(tile)
    if isinstance(x, fx.Proxy):
        # torch.fx knows no shapes: the call stands in its graph as it is.
        given = (x, str(tile)) if reduce is mean else (x, str(tile), reduce)
        return x.tracer.create_proxy("call_function", squeeze, given, {})
    _check_map(x)
    return by_pytorch.squeeze(x, tile) if reduce is mean and is_eager(x) else formula.squeeze(x, tile, reduce)


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
    _check_one_map(tile)
    if isinstance(x, fx.Proxy):
        options = {"inplace": True} if inplace else {}
        return x.tracer.create_proxy("call_function", scale, (x, gates, str(tile)), options)
    _check_map(x)
    _check_gates(x, gates, tile)
    recorded = torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad)
    _check_inplace(inplace and recorded)
    if is_eager(x) and not recorded:
        return by_pytorch.scale(x, gates, tile, x if inplace else None)
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
    if type(tile) is not Tile:
        tile = Tile.parse(tile)
    _check_one_map(tile)
    if isinstance(x, fx.Proxy):
        return scale(x, excite(squeeze(x, tile, reduce)), tile, inplace=inplace)
    layers = _layers(x, excite, reduce)
    if isinstance(layers, TwoLayers):
        if torch.compiler.is_compiling():
            return registered.traced(x, layers, tile)
        if inplace:
            _check_inplace(torch.is_grad_enabled() and any(v.requires_grad for v in (x, *layers.weights)))
        tell(x, tile, layers, excite)
        return registered.run(x, layers, tile, inplace)
    tell(x, tile, layers, excite)
    if not (torch.is_grad_enabled() and reduce is mean and is_eager(x)):
        return scale(x, excite(squeeze(x, tile, reduce)), tile, inplace=inplace)
    _check_map(x)
    link = by_pytorch.Link()
    x, descriptors = by_pytorch.Squeeze.apply(x, tile, link)
    gates = direct(excite, x)(descriptors)
    if torch.promote_types(x.dtype, gates.dtype) == x.dtype and (x.requires_grad or gates.requires_grad):
        _check_gates(x, gates, tile)
        _check_inplace(inplace)
        gates = gates.to(x.dtype).expand(x.shape[0], -1, -1, -1)
        return by_pytorch.Scale.apply(x, gates, tile, link)
    return scale(x, gates, tile, inplace=inplace)


def _layers(x: Tensor, excite: Excite, reduce: Reduce) -> TwoLayers | str:
    """The layers that the registered operator runs, or why it is not the way to take."""
    if reduce is not mean:
        return "it squeezes more than a mean"
    shape = x.shape
    if len(shape) != 4 or shape[2] == 0 or shape[3] == 0:
        return "this is no map of shape (N, C, H, W)"
    if not is_eager(x):
        if not torch.compiler.is_compiling():
            return "a tracer, torch.func or a subclass of Tensor asks"
        if torch.compiler.is_exporting():
            return "an exporter gets plain operators"
    layers = two_layers(excite)
    if isinstance(layers, str):
        return layers
    return layers.why_not(x) or layers


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
    return layers.excite if isinstance(layers, TwoLayers) and layers.why_not(x) is None else excite


def known(x: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """What each row strip knows of its map: the mean over ``Tile.own_bounds``, and that over ``Tile.bounds``.

    Args:
        x: Map, (N, C, H, W).
        tile: Strips of rows.

    Returns:
        Two of (N, C, strips, 1); the same for strips that see only their own rows.

    Example:
        >>> own, seen = known(torch.tensor([1.0, 3.0, 5.0]).view(1, 1, 3, 1), Tile.parse("1xW:running+1"))
        >>> own.flatten().tolist(), seen.flatten().tolist()
        ([2.0, 4.0, 5.0], [2.0, 3.0, 3.0])
    """
    height = int(x.shape[2])
    if by_rows(tile, height):
        rows = squeeze(x, _ROWS)
        return own_of(rows, tile), seen(rows, tile)
    tall, _ = tile.size(height, 1)
    own = squeeze(x, Tile(tall, None))
    return own, running(own, height, tall) if tile.slides else own


def correct(x: Tensor, tile: Tile, numbers: tuple[Tensor, Tensor | None, Tensor]) -> Tensor:
    """Descriptors of row strips by the numbers of a calibration: a linear map of what each strip knows.

    Args:
        x: Map, (N, C, H, W).
        tile: Strips of rows.
        numbers: The factor of the mean of a strip's own rows, that of the mean of the rows seen (None: it is not
            used), and what is added; each (C, strips, 1).

    Returns:
        (N, C, strips, 1).

    Raises:
        TiledSEError: an exporter leaves the height free.

    Example:
        >>> x = torch.tensor([1.0, 1.0, 3.0, 3.0]).view(1, 1, 4, 1)
        >>> half = torch.full((1, 2, 1), 0.5)
        >>> correct(x, Tile.parse("2xW:running"), (half, half, 0 * half)).flatten().tolist()
        [1.0, 2.5]
    """
    of_own, of_seen, offset = numbers
    if torch.compiler.is_exporting() and not formula.is_known(x.shape[2]):
        raise TiledSEError(
            f"tile {tile}: a calibrated block holds for maps of one height; leave the height fixed in dynamic_shapes, "
            "or export the network before it is calibrated"
        )
    own, rows_seen = known(x, tile)
    descriptors = own * of_own + offset
    return descriptors if of_seen is None else descriptors + rows_seen * of_seen


def _check_one_map(tile: Tile) -> None:
    if tile.previous:
        raise TiledSEError(
            f"tile {tile}: its gates are computed from the previous frame as well, which a function of one map does "
            "not know; convert a network with it (ts.convert), which keeps the state"
        )


def _check_map(x: Tensor) -> None:
    if x.dim() != 4 or 0 in sides(x):
        raise TiledSEError(
            f"expected a map of shape (N, C, H, W) with at least one row and one column, got {tuple(x.shape)}"
        )


def _check_gates(x: Tensor, gates: Tensor, tile: Tile) -> None:
    if torch.jit.is_tracing() or formula.is_free(x):
        return  # sizes are tensors or symbols there
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
