"""The shapes of normalisations, which are those of their operand.

torch works out the shapes of a normalisation by its definition, a dozen operators in Python: 2 to 10 ms each, most of
the time of a run on shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class NormShapes(TorchDispatchMode):
    """Answers for normalisations of tensors without numbers; all else is left to torch.

    Example:
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> with FakeTensorMode(allow_non_fake_inputs=True), NormShapes():
        ...     tuple(torch.nn.BatchNorm2d(8).eval()(torch.zeros(2, 8, 4, 4)).shape)
        (2, 8, 4, 4)
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor

        if args and isinstance(args[0], FakeTensor) and not kwargs:
            statistics = _statistics(func, args)
            if statistics is not None:
                x = args[0]
                means = x.new_empty(statistics)
                return torch.empty_like(x), means, means
        return func(*args, **(kwargs or {}))


def _statistics(func: Any, args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The shape of the means that a normalisation gives beside its map; None for what torch is to judge itself."""
    x = args[0]
    if func is _aten.native_batch_norm.default and len(args) == 8 and x.dim() > 1 and not args[5]:
        return (0,) if _fit(x.shape[1], args[1:5]) else None
    if func is _aten._native_batch_norm_legit_no_training.default and len(args) == 7 and x.dim() > 1:
        return (0,) if _fit(x.shape[1], args[1:5]) else None
    if func is _aten.native_group_norm.default and len(args) == 8:
        n, channels, _, groups = args[3:7]
        return (n, groups) if channels % groups == 0 and _fit(channels, args[1:3]) else None
    if func is _aten.native_layer_norm.default and len(args) == 5:
        over = len(args[1])
        alike = tuple(x.shape[-over:]) == tuple(args[1])
        weights = all(w is None or tuple(w.shape) == tuple(args[1]) for w in args[2:4])
        return (*x.shape[:-over], *[1] * over) if alike and weights else None
    return None


def _fit(channels: int, numbers: tuple[Tensor | None, ...]) -> bool:
    return all(n is None or tuple(n.shape) == (channels,) for n in numbers)
