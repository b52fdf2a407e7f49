"""Watch one call of a module: what it reads of itself, keeps on itself, calls, and in which modes of torch."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_OWN = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "tiledse"}
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, tuple, list)

Name = tuple[str, str]


@dataclass
class Seen:
    """What one call showed; modules are named from the one that was called.

    Attributes:
        read: (module, attribute): what was read.
        kept: (module, attribute): what was set, or changed in place.
        called: Modules that were called.
        autocast: Whether autocast was on, for each call of torch.
    """

    read: set[Name] = field(default_factory=set)
    kept: set[Name] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    autocast: set[bool] = field(default_factory=set)


class _Watched:
    """Comes before the class of a watched module."""

    def __init_subclass__(cls) -> None:
        """No word to the classes behind, which may keep a register of their subclasses."""


class _Modes(TorchFunctionMode):
    def __init__(self, seen: Seen, device: str) -> None:
        super().__init__()
        self.seen, self.device = seen, device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.autocast.add(torch.is_autocast_enabled(self.device))
        return func(*args, **(kwargs or {}))


@contextmanager
def watch(module: nn.Module) -> Iterator[Seen]:
    """Watch what is called of a module and its parts within the body.

    Example:
        >>> layer = nn.Sequential(nn.ReLU())
        >>> with watch(layer) as seen:
        ...     _ = layer(torch.zeros(2))
        >>> sorted(seen.called), ("0", "inplace") in seen.read, seen.kept
        (['', '0'], True, set())
    """
    seen = Seen()
    parts = list(module.named_modules())
    classes = [type(part) for _, part in parts]
    before = [_state(part) for _, part in parts]
    for path, part in parts:
        _watch_one(path, part, seen)
    parameter = next(module.parameters(), None)
    device = "cpu" if parameter is None else parameter.device.type
    try:
        with _Modes(seen, device):
            yield seen
    finally:
        for (_, part), cls in zip(parts, classes):
            object.__setattr__(part, "__class__", cls)
    for (path, part), old in zip(parts, before):
        now = _state(part)
        seen.kept |= {(path, name) for name in {*old, *now} if not _same(old.get(name), now.get(name))}


def _watch_one(path: str, part: nn.Module, seen: Seen) -> None:
    cls = type(part)

    def getattribute(self: Any, name: str) -> Any:
        if name == "forward":
            seen.called.add(path)
        elif name not in _OWN:
            seen.read.add((path, name))
        return cls.__getattribute__(self, name)

    space = {"__getattribute__": getattribute, "__module__": cls.__module__}
    watched = types.new_class(cls.__name__, (_Watched, cls), {}, lambda body: body.update(space))
    object.__setattr__(part, "__class__", watched)


def _state(part: nn.Module) -> dict[str, tuple[Any, Any]]:
    """What a module holds, and for what is changed in place its version or size."""
    held = {name: value for name, value in vars(part).items() if name not in _OWN}
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in {**held, **part._buffers}.items():
        mark: Any = None
        if isinstance(value, Tensor):
            mark = value._version
        elif isinstance(value, (list, dict, set)):
            mark = len(value)
        found[name] = value, mark
    return found


def _same(old: tuple[Any, Any] | None, now: tuple[Any, Any] | None) -> bool:
    return old is not None and now is not None and old[0] is now[0] and old[1] == now[1]


def plain_value(module: nn.Module, name: str) -> tuple[bool, Any]:
    """Whether an attribute is a number, text or the like (no layer, tensor, method), and its value."""
    value = vars(module).get(name, getattr(type(module), name, None))
    held = name in vars(module) or hasattr(type(module), name)
    return held and not name.startswith("__") and isinstance(value, _PLAIN), value
