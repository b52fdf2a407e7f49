"""Copy a network, with what a plain deep copy loses."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

from ..errors import TiledSEError, first_line

_TABLES = (dict, OrderedDict, set)


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, each module in the mode of its original.

    Args:
        model: The network.
        memo: By id: what is not copied, and what stands for it.

    Raises:
        TiledSEError: it cannot be copied.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        # Empty tables, which a module has a dozen of, take most of the time.
        memo.update({id(v): type(v)() for v in vars(module).values() if type(v) in _TABLES and not v})
    try:
        twin = copy.deepcopy(model, memo)
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
