"""Copy a network, with what a plain deep copy loses, and in a fraction of its time."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import TiledSEError, first_line

_TABLES = frozenset((dict, OrderedDict, set))
_ATOMS = frozenset((bool, int, float, str, type(None)))
# What a class may have to be copied in a way of its own.
_OWN_WAYS = (
    "__deepcopy__", "__copy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__new__",
    "__getnewargs__", "__getnewargs_ex__",
)  # fmt: skip


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, each module in the mode of its original.

    Args:
        model: The network.
        memo: By id: what is not copied, and what stands for it.

    Raises:
        TiledSEError: it cannot be copied.
    """
    try:
        twin = deep_copy(model, memo)
    except Exception as error:  # whatever the attributes of a stranger's module raise
        raise TiledSEError(
            f"the network cannot be copied ({type(error).__name__}: {first_line(error, 120)}); convert works on a copy "
            "made by copy.deepcopy: take off what cannot be copied (an open file, a lock, a tensor with a gradient)"
        ) from error
    # A copy by the module's own means, as torch.fx has them, comes in train mode.
    for old, new in zip(model.modules(), twin.modules()):
        new.training = old.training
        if "forward" in vars(new) and vars(new)["forward"] is vars(old).get("forward"):
            raise TiledSEError(
                f"the forward of a {type(old).__name__} is a function set on the instance, which would call the "
                "network given and not its copy; take it off, convert, and set it again"
            )
    return twin


def deep_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """``copy.deepcopy``: the same result, without its detours for what most modules are.

    Args:
        module: The module.
        memo: As deepcopy's.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> twin = deep_copy(model, {id(model[0].weight): model[0].weight})
        >>> twin[0] is model[0], twin[0].weight is model[0].weight, twin[0].bias is model[0].bias
        (False, True, False)
    """
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    state, cls = vars(module), type(module)
    if not _is_plain(cls):
        for child in module._modules.values():
            if child is not None:
                deep_copy(child, memo)
        return copy.deepcopy(module, memo)
    twin = memo[id(module)] = object.__new__(cls)
    # Not by setattr, for which a module has rules.
    space = twin.__dict__
    for name, value in state.items():
        space[name] = value if type(value) in _ATOMS else _copied(value, memo)
    return twin


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if kind in _TABLES:
        if id(value) in memo:
            return memo[id(value)]
        if not value:  # which a module has a dozen of
            return memo.setdefault(id(value), kind())
        if kind is not set and all(type(key) is str for key in value):
            table: dict[str, Any] = kind()
            memo[id(value)] = table
            for key, item in value.items():
                table[key] = item if type(item) in _ATOMS else _copied(item, memo)
            return table
    elif kind is tuple and all(type(item) in _ATOMS for item in value):
        return value
    elif isinstance(value, nn.Module):
        return deep_copy(value, memo)
    elif kind is Tensor and id(value) not in memo:
        return memo.setdefault(id(value), _tensor(value, memo))
    return copy.deepcopy(value, memo)


def _tensor(value: Tensor, memo: dict[Any, Any]) -> Tensor:
    """A copy of a tensor; one that has memory of its own is cloned, in a twentieth of deepcopy's time."""
    of_numbers = (
        value.layout is torch.strided and value.device.type in ("cpu", "cuda") and not value.is_quantized
    )
    if not of_numbers or value.requires_grad or vars(value) or value.is_complex():
        return copy.deepcopy(value, memo)
    memory = value.untyped_storage()
    # deepcopy keeps the copies of memory here, so that views of one memory stay that.
    known = memo.setdefault("torch", {})
    if memory._cdata in known or value.numel() * value.element_size() != memory.nbytes():
        return copy.deepcopy(value, memo)
    twin = value.clone()
    known[memory._cdata] = twin.untyped_storage()
    return twin


def _is_plain(cls: type[nn.Module]) -> bool:
    """Whether deepcopy would make a new object of a class and copy its attributes, and nothing else."""
    if cls not in _PLAIN:
        _PLAIN[cls] = _has_no_way_of_its_own(cls)
    return _PLAIN[cls]


_PLAIN: WeakKeyDictionary[type[nn.Module], bool] = WeakKeyDictionary()


def _has_no_way_of_its_own(cls: type[nn.Module]) -> bool:
    if cls in copyreg.dispatch_table or any(vars(c).get("__slots__") for c in cls.__mro__):
        return False
    own = [name for name in _OWN_WAYS if getattr(cls, name, None) is not getattr(nn.Module, name, None)]
    # torch's layers give what was pickled by earlier releases the attributes that it lacks.
    return not own or (
        own == ["__setstate__"] and cls.__setstate__.__module__.startswith("torch.nn.modules.")
    )
