"""Prove by numbers that a module whose forward was rewritten is what it was, and that its tiles are right."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import TiledSEError, first_line
from ..tile import Tile
from .block import set_tile
from .inline_block import InlineSE
from .inline_host import InlineHost
from .inline_trace import Call

_ONE_TILE = Tile(10**9, 10**9)
# Largest sides of a map that a proof is run on, where the module takes such a map; and of the blocks' own maps.
_SIDE, _ROWS, _COLS = 24, 7, 6


def prove(host: nn.Module, calls: list[Call], maps: Mapping[str, tuple[int, ...]]) -> None:
    """Run a rewritten module on random numbers; with gradients and without, each way in which it is called.

    With its SE as it was and with one tile over the whole map it must give what its own forward gives; and each of
    its blocks with strips must give what the block gives on each strip alone.

    Args:
        host: The module, in eval mode; it is left as it was.
        calls: How it is called.
        maps: By block, the shape of its map.

    Raises:
        TiledSEError: it does not.
    """
    assert isinstance(host, InlineHost)
    parameter = next(host.parameters(), None)
    if parameter is not None and parameter.is_meta:
        return
    for name, shape in maps.items():
        _prove_tiles(host.get_submodule(name), shape, parameter)
    seen = set()
    for call in calls:
        way = str(call.spec), call.rest
        if way in seen:
            continue
        seen.add(way)
        before, tensors = _before(host, call)
        for tiles in (False, True):
            after = _after(host, call, tensors, tiles)
            worst = _difference(before, after)
            if worst > _tolerance(tensors):
                form = "with one tile over the map" if tiles else "rewritten"
                raise TiledSEError(f"{form} it gives other numbers than before (off by {worst:.1e})")


def _before(host: InlineHost, call: Call) -> tuple[list[Any], list[Tensor]]:
    """What the forward as it was gives, and on which tensors: small ones where it takes them."""
    for small in (True, False):
        tensors = _random(call, small)
        twin = copy.deepcopy(host)
        for name in twin._tiledse_blocks:
            del twin._modules[name]
        object.__setattr__(twin, "__class__", host._tiledse_source)
        try:
            return _run(twin, call, tensors), tensors
        except Exception as error:  # a stranger's forward may refuse a size in any way
            refused = error
    raise TiledSEError(f"its forward fails on random numbers: {first_line(refused, 80)}")


def _after(host: InlineHost, call: Call, tensors: list[Tensor], tiles: bool) -> list[Any]:
    twin = copy.deepcopy(host)
    for name, dialect in twin._tiledse_blocks.items():
        if tiles:
            set_tile(twin.get_submodule(name), dialect, _ONE_TILE)
    try:
        return _run(twin, call, tensors)
    except TiledSEError:
        raise
    except Exception as error:
        raise TiledSEError(f"rewritten it fails: {first_line(error, 80)}") from None


def _run(module: nn.Module, call: Call, tensors: list[Tensor]) -> list[Any]:
    args, kwargs = call.filled(t.clone() for t in tensors)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tree_leaves(module(*args, **kwargs))


def _random(call: Call, small: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for like in call.tensors:
        shape = like.shape
        if small and len(shape) == 4:
            shape = (*shape[:2], *(min(side, _SIDE) for side in shape[2:]))
        tensor = torch.randn(shape, generator=generator)
        tensors.append(tensor.to(like.device, like.dtype))
    return tensors


def _prove_tiles(block: nn.Module, shape: tuple[int, ...], parameter: Tensor | None) -> None:
    """A block with strips of three rows and with patches gives what it gives on each tile alone."""
    assert isinstance(block, InlineSE)
    dialect, nhwc = block.dialect, block.dialect.nhwc
    channels = shape[3] if nhwc else shape[1]
    x = torch.randn(2, channels, _ROWS, _COLS, generator=torch.Generator().manual_seed(0))
    x = x if parameter is None else x.to(parameter)

    def run(module: nn.Module, part: Tensor) -> Tensor:
        part = part.clone()
        return module(part.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if nhwc else module(part)

    for tile in (Tile(3, None), Tile(3, 4)):
        tall, wide = tile.size(_ROWS, _COLS)
        try:
            with torch.no_grad():
                alone = [
                    torch.cat([run(block, part) for part in row.split(wide, 3)], 3)
                    for row in x.split(tall, 2)
                ]
                expected = torch.cat(alone, 2)
                tiled = copy.copy(block)  # an object of its own with the same tables
                set_tile(tiled, dialect, tile)
                got = run(tiled, x)
        except Exception as error:
            raise TiledSEError(f"with tile {tile} it fails: {first_line(error, 80)}") from None
        worst = _difference([expected], [got])
        if worst > _tolerance([x]):
            raise TiledSEError(
                f"with tile {tile} it is not what it is on each tile alone (off by {worst:.1e})"
            )


def _difference(before: list[Any], after: list[Any]) -> float:
    """The largest difference of two outputs, relative to the largest number in each tensor."""
    if len(before) != len(after):
        return float("inf")
    worst = 0.0
    for a, b in zip(before, after):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.numel() and (a.is_floating_point() or a.is_complex()):
            largest = float(a.abs().max()) or 1.0
            difference = float((a - b).abs().max()) / largest
            worst = max(worst, difference if difference == difference else float("inf"))
        elif not torch.equal(a, b):
            return float("inf")
    return worst


def _tolerance(tensors: list[Tensor]) -> float:
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
    return 2e-2 if half else 1e-4
