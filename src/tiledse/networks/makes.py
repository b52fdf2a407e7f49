"""What shows that two modules are of one make."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .inline_block import holder

_DEEP = 4


def has_hooks(part: nn.Module) -> bool:
    """Whether something is called before or after a module."""
    return bool(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    )


def looks(part: nn.Module, numbers: bool = True) -> tuple[Any, ...]:
    """What shows whether a module is of the same make as another; with whole numbers, such as channels, or without."""
    kinds = (bool, float, str, int) if numbers else (bool, float, str)
    own = vars(part)
    plain = tuple((k, v) for k, v in own.items() if isinstance(v, kinds) and (numbers or type(v) is not int))
    names = (tuple(own), tuple(part._parameters), tuple(part._buffers), tuple(part._modules))
    return type(part), names, has_hooks(part), plain


def make(block: nn.Module) -> tuple[Any, ...]:
    """All that a block is but for the numbers in its tensors; blocks that have it in common compute alike.

    Classes, every attribute, and the shapes and types of parameters and buffers, of the block and each layer. What
    cannot be compared by value counts as the same only where it is the same object.

    Example:
        >>> make(nn.Conv2d(4, 4, 1)) == make(nn.Conv2d(4, 4, 1)), make(nn.Dropout(0.1)) == make(nn.Dropout(0.2))
        (True, False)
    """
    return tuple(
        (
            path,
            type(part),
            *(_attribute(name, value) for name, value in vars(part).items() if name != "_tiledse_host"),
        )
        for module in dict.fromkeys((block, holder(block)))
        for path, part in module.named_modules(remove_duplicate=False)
    )


def _attribute(name: str, value: Any) -> tuple[Any, ...]:
    # Modules are listed by themselves, by their paths.
    return (name, *value) if name == "_modules" else (name, _frozen(value))


def _frozen(value: Any, depth: int = 0) -> Any:
    kind = type(value)
    if isinstance(value, Tensor):
        return kind, tuple(value.shape), value.dtype, value.device, value.requires_grad
    if depth < _DEEP and isinstance(value, dict):
        return kind, tuple((key, _frozen(item, depth + 1)) for key, item in value.items())
    if depth < _DEEP and isinstance(value, (tuple, list)):
        return kind, tuple(_frozen(item, depth + 1) for item in value)
    if isinstance(value, set):
        value = frozenset(value)
    try:
        hash(value)
    except TypeError:
        return kind, id(value)
    return kind, value
