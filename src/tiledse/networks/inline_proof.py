"""Prove by numbers that a module whose forward was rewritten is what it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import TiledSEError, first_line
from .duplicating import deep_copy
from .inline_host import InlineHost, settle
from .inline_trace import Call

# Largest side of a map that a proof is run on, where the module takes such a map.
_SIDE = 24


def prove(host: nn.Module, calls: list[Call]) -> None:
    """Run a rewritten module on random numbers, in each way in which it is called: it must give what it gave.

    Args:
        host: The module, in eval mode; it is left as it was.
        calls: How it is called.

    Raises:
        TiledSEError: it does not.
    """
    assert isinstance(host, InlineHost)
    if any(p.is_meta for p in host.parameters()):
        return
    seen = set()
    for call in calls:
        way = str(call.spec), call.rest
        if way in seen:
            continue
        seen.add(way)
        before, tensors = _before(host, call)
        try:
            after = _run(_twin(host), call, tensors)
        except TiledSEError:
            raise
        except Exception as error:
            raise TiledSEError(f"rewritten it fails: {first_line(error, 80)}") from None
        worst = _difference(before, after)
        if worst > _tolerance(tensors):
            raise TiledSEError(f"rewritten it gives other numbers than before (off by {worst:.1e})")


def _before(host: InlineHost, call: Call) -> tuple[list[Any], list[Tensor]]:
    """What the forward as it was gives, and on which tensors: small ones where it takes them."""
    for small in (True, False):
        tensors = _random(call, small)
        twin = _twin(host)
        settle(twin)  # its own forward again
        try:
            return _run(twin, call, tensors), tensors
        except Exception as error:  # a stranger's forward may refuse a size in any way
            refused = error
    raise TiledSEError(f"its forward fails on random numbers: {first_line(refused, 80)}")


def _twin(host: InlineHost) -> InlineHost:
    """A copy that shares the parameters: what a forward stores, it stores there."""
    return deep_copy(host, {id(p): p for p in host.parameters()})


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
