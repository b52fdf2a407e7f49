"""Networks in train or eval mode, also those whose train() and eval() give nothing back (mmpretrain's backbones)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def in_eval(model: Module) -> Module:
    """This very network, put in eval mode.

    Example:
        >>> in_eval(nn.Dropout()).training
        False
    """
    model.eval()
    return model


def in_train(model: Module) -> Module:
    """This very network, put in train mode.

    Example:
        >>> in_train(nn.Dropout().eval()).training
        True
    """
    model.train()
    return model


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
