"""Trace the forward of one module for one way of calling it; its children stay calls.

A trace resolves control flow: it holds for the modes, attributes and arguments that it was made with. ``signature``
names all of these, so that a caller can tell when another trace is due. What a trace cannot hold is refused.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import first_line

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_DEEP = 4


class NotTraced(Exception):
    """Why a forward cannot be rewritten."""


class Like(NamedTuple):
    """The shape, type and device of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Call:
    """The arguments of one call, with its tensors apart from the rest.

    Example:
        >>> call = Call((torch.zeros(1, 3),), {"drop_connect_rate": 0.2})
        >>> len(call.tensors), call.rest
        (1, (None, ('float', 0.2)))
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.leaves, self.spec = tree_flatten((args, kwargs), is_leaf=lambda leaf: isinstance(leaf, Like))
        self.tensors = [leaf for leaf in self.leaves if _is_tensor(leaf)]
        self.rest = tuple(None if _is_tensor(leaf) else _frozen(leaf) for leaf in self.leaves)

    def abstract(self) -> Call:
        """The same call with shapes in place of tensors, which holds no memory."""
        like = (Like(tuple(t.shape), t.dtype, t.device) for t in self.tensors)
        return Call(*self.filled(like))

    def zeros(self) -> list[Tensor]:
        """Tensors of the shapes of an abstract call."""
        return [torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in self.tensors]

    def filled(self, tensors: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments with other tensors."""
        given = iter(tensors)
        return tree_unflatten([next(given) if _is_tensor(leaf) else leaf for leaf in self.leaves], self.spec)


def signature(module: nn.Module, opened: tuple[str, ...], call: Call) -> tuple[Any, ...]:
    """All that a trace of this call depends on: modes, plain attributes, arguments that are no tensors.

    Args:
        module: Whose forward is traced.
        opened: Names of its children that are traced through.
        call: The arguments.
    """
    read = [module, *(module.get_submodule(name) for name in opened)]
    return tuple(_attributes(m) for m in read), str(call.spec), call.rest, _context()


def trace(module: nn.Module, cls: type[nn.Module], opened: tuple[str, ...], call: Call) -> fx.Graph:
    """The graph of ``cls.forward`` on this module; one placeholder for each tensor of the call.

    Nothing of the module is changed: the forward runs on a stand-in that shares its layers and tensors.

    Raises:
        NotTraced: the forward branches on values, draws random numbers in Python, stores something on the module,
            enters a context, or makes tensors of its own; or hooks and replaced forwards would be passed over.
    """
    for name in opened:
        _check_plain(module.get_submodule(name), name)
    root = _stand_in(module, cls, opened)
    watched = [root, *(root.get_submodule(name) for name in opened)]
    before, drawn = [_state(m) for m in watched], _random_state()
    tracer = _Tracer(opened, call)
    try:
        graph = tracer.trace(root)
    except NotTraced:
        raise
    except Exception as error:  # whatever a stranger's forward raises when it meets proxies
        raise NotTraced(f"it cannot be traced ({first_line(error, 120)})") from None
    finally:
        after = _random_state()
        _restore_random_state(drawn)
    if not _same(drawn, after):
        raise NotTraced("it draws random numbers that do not depend on its input while it is traced")
    for node in graph.nodes:
        if node.op == "get_attr" and not _has(module, str(node.target)):
            raise NotTraced("it makes a tensor of its own, not from its input, at each call")
    for m, old in zip(watched, before, strict=True):
        changed = [key for key, value in _state(m).items() if old.get(key) != value]
        if changed or _state(m).keys() != old.keys():
            raise NotTraced(f"it stores '{changed[0] if changed else '?'}' on itself at each call")
    return graph


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, opened: tuple[str, ...], call: Call) -> None:
        super().__init__()
        self.trace_asserts = True
        self.opened, self.call, self.context = opened, call, _context()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        proxies = [
            self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(len(self.call.tensors))
        ]

        def run(root: nn.Module, *tensors: Any) -> Any:
            args, kwargs = self.call.filled(tensors)
            return root_fn(root, *args, **kwargs)

        return run, [self.root, *proxies]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self.context:
            raise NotTraced(
                "part of it runs in a context of its own, such as torch.no_grad or torch.autocast"
            )
        node = super().create_node(*args, **kwargs)
        # Which of the opened layers it stands in: the larger forward itself is none.
        within = {name for name, _ in self.module_stack.values()}
        node.meta["opened"] = tuple(name for name in self.opened if name in within)
        return node


def _check_plain(module: nn.Module, name: str) -> None:
    if "forward" in vars(module):
        raise NotTraced(f"the forward of its layer '{name}' was replaced on the instance")
    tables = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    hooks = (hook for table in tables for hook in table.values())
    if any(not getattr(hook, "__module__", "").startswith("tiledse.") for hook in hooks):  # ours only watch
        raise NotTraced(f"its layer '{name}' has hooks, which would be passed over")


def _stand_in(module: nn.Module, cls: type[nn.Module], opened: tuple[str, ...]) -> nn.Module:
    """The module, and its opened children, as objects of their own with the same layers and tensors."""

    def copied(m: nn.Module, kind: type[nn.Module]) -> nn.Module:
        twin = kind.__new__(kind)
        twin.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in vars(m).items()}
        return twin

    root = copied(module, cls)
    for name in sorted(opened):
        parent, _, child = name.rpartition(".")
        holder = root.get_submodule(parent)
        holder._modules[child] = copied(holder.get_submodule(child), type(holder.get_submodule(child)))
    return root


def _state(module: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for key, value in vars(module).items():
        if key in ("_parameters", "_buffers", "_modules"):
            state |= {f"{name}": id(item) for name, item in value.items()}
        else:
            state[key] = _frozen(value)
    return state


def _attributes(module: nn.Module) -> tuple[Any, ...]:
    own = vars(module)
    return tuple(
        (key, _frozen(own[key])) for key in own if key not in _OF_EVERY_MODULE and key[:8] != "_tiledse"
    )


def _frozen(value: Any, depth: int = 0) -> Any:
    """A value that is equal as long as the other is: numbers and texts by value, containers by their items."""
    if value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device)
    ):
        return type(value).__name__, value
    if isinstance(value, (Tensor, nn.Module)):
        return type(value).__name__, id(value)
    if depth == _DEEP:
        return type(value).__name__, id(value)
    if isinstance(value, dict):
        return "dict", tuple((_frozen(k, depth + 1), _frozen(v, depth + 1)) for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(_frozen(item, depth + 1) for item in value)
    if isinstance(value, (set, frozenset)):
        return "set", frozenset(_frozen(item, depth + 1) for item in value)
    if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        return type(value).__name__, id(value), _frozen(vars(value), depth + 1)
    return type(value).__name__, id(value)


def _context() -> tuple[Any, ...]:
    """What a forward may ask for beside its arguments: gradients, autocast, and which tool runs it."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
        torch.jit.is_tracing(),
        torch.compiler.is_exporting(),
        torch.onnx.is_in_onnx_export(),
    )


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    numpy = all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    return a[0] == b[0] and numpy and torch.equal(a[2], b[2])


def _has(module: nn.Module, name: str) -> bool:
    try:
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, fx.Proxy, Like))
