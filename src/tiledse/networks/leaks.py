"""Take back what a run on shapes leaves outside of the copy that ran: tensors without numbers, written parameters."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MISSING = object()
_DEPTH = 5


class Leaks(TorchDispatchMode):
    """Watches the run inside it, and undoes what it left behind.

    A copy of a network keeps what a forward stores on it. What remains are tables of a module or class, closures,
    caches of functions, and the parameters, which the copy shares.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []
        self._parameters = {p.untyped_storage()._cdata: p for p in model.parameters()}
        self._written: dict[int, Tensor] = {}
        classes = dict.fromkeys(cls for m in model.modules() for cls in type(m).__mro__ if _is_foreign(cls))
        homes = dict.fromkeys(sys.modules.get(cls.__module__) for cls in classes)
        self._spaces = [(space, dict(vars(space))) for space in (*classes, *homes) if space is not None]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor

        kwargs = kwargs or {}
        if func._schema.is_mutable:
            self._save(func, args, kwargs)
        out = func(*args, **kwargs)
        self._made += [weakref.ref(leaf) for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        return out

    def _save(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the numbers of a parameter that is about to be written."""
        for place, argument in enumerate(func._schema.arguments):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if (
                argument.alias_info is None
                or not argument.alias_info.is_write
                or not isinstance(value, Tensor)
            ):
                continue
            key = value.untyped_storage()._cdata
            if key in self._parameters and key not in self._written:
                self._written[key] = self._parameters[key].detach().clone()

    def undo(self) -> None:
        """Put everything back. The run and all that it gave must be gone by now, but what is wanted of it."""
        with torch.no_grad():
            for key, numbers in self._written.items():
                self._parameters[key].data.copy_(numbers)
        if not self._alive():
            return
        gc.collect()
        for space, before in self._spaces:
            for name, value in list(vars(space).items()):
                if value is not before.get(name, _MISSING) and _holds_fake(value):
                    if name in before:
                        setattr(space, name, before[name])
                    else:
                        delattr(space, name)
        alive = self._alive()
        for tensor in alive:
            _take_out(tensor, [alive], _DEPTH)

    def _alive(self) -> list[Tensor]:
        return [tensor for ref in self._made if (tensor := ref()) is not None]


def _is_foreign(cls: type) -> bool:
    return cls.__module__ != "builtins" and not cls.__module__.startswith("torch.")


def _holds_fake(value: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(value))


def _take_out(thing: Any, ours: list[Any], depth: int) -> None:
    """Remove a thing from whatever holds it; ``ours`` are lists that hold it here."""
    # No closure here, whose cell would hold the thing too.
    for holder in gc.get_referrers(thing):
        if isinstance(holder, types.FrameType) or _position(ours, holder) is not None:
            continue
        if isinstance(holder, dict):
            for key in _keys(holder, thing):
                del holder[key]
        elif isinstance(holder, (list, deque)):
            while (place := _position(holder, thing)) is not None:
                del holder[place]
        elif isinstance(holder, set):
            holder.discard(thing)
        elif isinstance(holder, types.CellType):
            holder.cell_contents = None
        elif type(holder).__name__ in ("_lru_cache_wrapper", "_lru_list_elem"):
            _clear_caches(holder)
        elif isinstance(holder, tuple) and depth:
            _take_out(holder, ours, depth - 1)
        elif hasattr(holder, "__dict__") and not isinstance(holder, type):
            for key in _keys(vars(holder), thing):
                setattr(holder, key, None)


def _position(items: Iterable[Any], thing: Any) -> int | None:
    for place, item in enumerate(items):
        if item is thing:
            return place
    return None


def _keys(table: dict[Any, Any], thing: Any) -> list[Any]:
    return [key for key, value in table.items() if value is thing]


def _clear_caches(part: Any) -> None:
    for thing in gc.get_objects():
        if type(thing).__name__ == "_lru_cache_wrapper" and (
            thing is part or any(one is part for one in gc.get_referents(thing))
        ):
            thing.cache_clear()
