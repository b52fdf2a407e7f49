"""A traced excitation as a value: the steps from descriptors to gates, which a dialect runs."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Ref:
    """The value of an earlier step."""

    step: int


@dataclass(frozen=True)
class Step:
    """One operation of a traced excitation: what torch.fx calls op, target and arguments."""

    op: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Program:
    """A traced excitation: its steps, run on descriptors in place of the map.

    A 1x1 map is its own mean, so the steps are those of the block's forward from the map to the gate.

    Args:
        steps: The steps; the first gives the descriptors.
        fold: Whether the tiles are folded into the batch, because some step reshapes or takes a vector.
        nhwc: Whether the steps take maps as (N, H, W, C).
    """

    steps: tuple[Step, ...]
    fold: bool
    nhwc: bool

    def __call__(self, block: nn.Module, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape."""
        if not self.fold:
            return self._run(block, descriptors)
        n, channels, rows, cols = descriptors.shape
        flat = descriptors.permute(0, 2, 3, 1).reshape(n * rows * cols, 1, 1, channels)
        gates = self._run(block, flat if self.nhwc else flat.permute(0, 3, 1, 2))
        return gates.reshape(n, rows, cols, channels).permute(0, 3, 1, 2)

    def _run(self, block: nn.Module, first: Tensor) -> Tensor:
        values: list[Any] = []
        for step in self.steps:
            args = tuple(_resolve(arg, values) for arg in step.args)
            kwargs = {key: _resolve(value, values) for key, value in step.kwargs}
            if step.op == "placeholder":
                values.append(first)
            elif step.op == "same":
                values.append(args[0])
            elif step.op == "call_module":
                values.append(block.get_submodule(step.target)(*args, **kwargs))
            elif step.op == "call_method":
                values.append(getattr(args[0], step.target)(*args[1:], **kwargs))
            elif step.op == "get_attr":
                values.append(operator.attrgetter(step.target)(block))
            else:
                values.append(step.target(*args, **kwargs))
        return values[-1]


def _resolve(arg: Any, values: list[Any]) -> Any:
    if isinstance(arg, Ref):
        return values[arg.step]
    if isinstance(arg, tuple):
        return tuple(_resolve(item, values) for item in arg)
    return arg
