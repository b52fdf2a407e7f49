"""Networks in eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in eval mode; afterwards each of its modules gets its own mode back.

    Example:
        >>> model = nn.Sequential(nn.Dropout()).train()
        >>> with evaluating(model):
        ...     print(model.training)
        False
        >>> model[0].training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def in_eval(model: Module) -> Module:
    """Put a network in eval mode and give it back, also where its own ``train`` gives nothing back (mmpretrain).

    Example:
        >>> in_eval(nn.Dropout()).training
        False
    """
    model.eval()
    return model
