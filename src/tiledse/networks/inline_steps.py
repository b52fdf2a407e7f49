"""The steps of a block that is written inline, as a value: they can be compared, kept, copied and pickled."""

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
    """One operation: what torch.fx calls op, target and arguments."""

    op: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Steps:
    """The steps from a map to its product with the gate; the first gives the map."""

    steps: tuple[Step, ...]

    def __call__(self, holder: nn.Module, x: Tensor) -> Tensor:
        """Run the steps on a map, with the layers of the module that holds them."""
        values: list[Any] = []
        for step in self.steps:
            args = tuple(_resolve(arg, values) for arg in step.args)
            kwargs = {key: _resolve(value, values) for key, value in step.kwargs}
            if step.op == "placeholder":
                values.append(x)
            elif step.op == "call_module":
                values.append(holder.get_submodule(step.target)(*args, **kwargs))
            elif step.op == "call_method":
                values.append(getattr(args[0], step.target)(*args[1:], **kwargs))
            elif step.op == "get_attr":
                values.append(operator.attrgetter(step.target)(holder))
            else:
                values.append(step.target(*args, **kwargs))
        return values[-1]

    def resembles(self, other: Steps) -> bool:
        """Whether the other steps call the same in the same order, with whatever arguments."""
        return [(s.op, s.target) for s in self.steps] == [(s.op, s.target) for s in other.steps]


def _resolve(arg: Any, values: list[Any]) -> Any:
    if isinstance(arg, Ref):
        return values[arg.step]
    if isinstance(arg, tuple):
        return tuple(_resolve(item, values) for item in arg)
    return arg
