"""Count the SE products of a network while it runs, by its numbers alone: nothing of tiledse is used.

A product is SE where a map is multiplied by one number a channel, and that number comes from this very map by way of
a value in which the map's rows and columns are gone. The tape from the map to the product is kept, and run again on
each tile alone: that is what a converted block must give.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_PRODUCTS = (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor)


@dataclass
class Product:
    """One SE product.

    Attributes:
        owner: The module in whose forward it stands.
        call: Which call of that module it was, from 0 on.
        x: A copy of the map.
        replay: What the same steps give on another map of as many channels.
    """

    owner: str
    call: int
    x: Tensor
    replay: Callable[[Tensor], Tensor] = field(repr=False)


class Products(TorchDispatchMode):
    """Notes the SE products of what runs inside it."""

    def __init__(self, stack: list[tuple[str, int]]) -> None:
        super().__init__()
        self.stack = stack
        self.found: list[Product] = []
        self.alive: list[Any] = []  # so that no storage is used a second time
        self.maps: dict[int, Tensor] = {}  # by storage
        self.sources: dict[
            int, frozenset[int]
        ] = {}  # by value: the maps that it comes from, rows and columns gone
        self.tape: dict[int, list[tuple[Any, Any, Any, Any]]] = {}  # by map

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        keys = {t.untyped_storage().data_ptr() for t in tensors if _is_map(t)}
        before = self._note(func, args, tensors)
        out = func(*args, **kwargs)
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.alive += [*tensors, *outs, args]
        for t in tensors:
            if _is_map(t):
                self.maps.setdefault(t.untyped_storage().data_ptr(), t)
        if before is not None:
            return out
        source = frozenset().union(*(self.sources.get(id(t), frozenset()) for t in tensors))
        for t in outs:
            own = t.untyped_storage().data_ptr() in keys
            if not own and not _is_map(t) and any(t.numel() < self.maps[key].numel() for key in keys):
                source |= keys
        views = {
            k for t in tensors if not _is_map(t) for k in [t.untyped_storage().data_ptr()] if k in self.maps
        }
        source |= {k for k in views if all(t.numel() < self.maps[k].numel() for t in outs)}
        for key in source | keys | views:
            self.tape.setdefault(key, []).append((func, args, kwargs, out))
        for t in outs:
            if source and not _is_map(t):
                self.sources[id(t)] = source
        return out

    def _note(self, func: Any, args: Any, tensors: list[Tensor]) -> Product | None:
        if func not in _PRODUCTS or len(tensors) != 2:
            return None
        for x, gate in (tensors, tensors[::-1]):
            key = x.untyped_storage().data_ptr()
            if _is_map(x) and key in self.sources.get(id(gate), ()) and _per_channel(x, gate):
                steps, copy = list(self.tape.get(key, [])), x.detach().clone()
                self.found.append(Product(*self.stack[-1], copy, _replay(steps, x, gate)))
                return self.found[-1]
        return None


def _replay(steps: list[tuple[Any, Any, Any, Any]], x: Tensor, gate: Tensor) -> Callable[[Tensor], Tensor]:
    def run(tile: Tensor) -> Tensor:
        key = x.untyped_storage().data_ptr()
        values: dict[int, Tensor] = {id(x): tile}

        def new(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in values:
                return values[id(value)]
            same = value.untyped_storage().data_ptr() == key and value.shape == x.shape
            return tile if same else value

        for func, args, kwargs, out in steps:
            given = tree_leaves(tree_map(new, (args, kwargs)))
            old = tree_leaves((args, kwargs))
            if all(a is b for a, b in zip(given, old)):
                continue  # it does not depend on the map
            args, kwargs = tree_map(new, args), tree_map(new, kwargs)
            if func in _VIEWS and math.prod(args[1]) != args[0].numel():
                args = (args[0], [*args[1][:-1], -1])  # the map's rows and columns in one axis, the last
            made = func(*args, **kwargs)
            for a, b in zip(tree_leaves(out), tree_leaves(made)):
                if isinstance(a, Tensor):
                    values[id(a)] = b
        return tile * values[id(gate)]

    return run


def _is_map(t: Tensor) -> bool:
    return t.dim() == 4 and min(t.shape[1:]) > 1 and 0 not in t.stride()[2:]


def _per_channel(x: Tensor, gate: Tensor) -> bool:
    if gate.dim() != 4 or gate.shape[1] != x.shape[1]:
        return False
    return tuple(gate.shape[2:]) == (1, 1) or gate.stride()[2:] == (0, 0)


def products(model: nn.Module, image: Tensor) -> list[Product]:
    """The SE products of a network on an image, in order."""
    stack: list[tuple[str, int]] = []
    calls: dict[str, int] = {}
    handles = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, -1) + 1
            stack.append((name, calls[name]))

        return hook

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    mode = Products(stack)
    try:
        with torch.no_grad(), mode:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return mode.found
