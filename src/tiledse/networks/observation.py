"""Run a network once, on shapes alone, and note what is called and what is pooled.

What runs is a copy, and what does not depend on the image is computed for real: what a forward stores (tables of
positions, counters, lists) is stored in the copy, and what it stores outside is as real as in any other run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..errors import TiledSEError, first_line
from .counting import MacCounter
from .duplicating import deep_copy
from .flow import Flow, Pool
from .frames import begin_all
from .inline_trace import Call as Arguments
from .inputs import Inputs
from .leaks import Leaks
from .modes import in_eval
from .norm_shapes import NormShapes

# What an error speaks of that another size of image may mend.
_OF_SIZE = re.compile(
    r"\b(sizes?|shapes?|dimensions?|channels?|kernel|spatial|heights?|widths?|resolution|divisible|match|too small)\b",
    re.IGNORECASE,
)


class Call(NamedTuple):
    """One call of a module.

    Attributes:
        name: Of the module.
        shape: Of its first tensor; () where it has none.
        maps: What its tensors hold, as ``Flow.content`` numbers them.
        plain: Whether it was called with one tensor and nothing else.
    """

    name: str
    shape: tuple[int, ...]
    maps: frozenset[int]
    plain: bool


@dataclass
class Observation:
    """What one run showed.

    Attributes:
        calls: By module name, its calls, in the order of the first calls.
        arguments: By module name, the arguments of its calls, without values.
        pools: The whole maps that were pooled. Their ``stack`` and ``product`` are calls, outermost first.
        gates: Where a map was multiplied by one number a channel whose pool is not known: calls, outermost first.
        macs: Multiply-adds of the run.
        uncounted: Operators that the count does not cover.
    """

    calls: dict[str, list[Call]] = field(default_factory=dict)
    arguments: dict[str, list[Arguments]] = field(default_factory=dict)
    pools: list[Pool] = field(default_factory=list)
    gates: list[tuple[Call, ...]] = field(default_factory=list)
    macs: int = 0
    uncounted: tuple[str, ...] = ()


def observe(model: nn.Module, inputs: Inputs) -> Observation:
    """Run a copy of the network once and note what is called and what is pooled.

    Raises:
        TiledSEError: the network cannot be copied, or refuses the input.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    )

    needs_values = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
    try:
        try:
            return _on_shapes(model, inputs)
        except Exception as error:
            if not isinstance(error, needs_values) and _concerns_size(error):
                raise
            if any(p.is_meta for p in model.parameters()):
                raise
        # A forward that looks at values cannot run on shapes alone: run it on real numbers.
        return _on_numbers(model, inputs)
    except TiledSEError:
        raise
    except Exception as error:
        text = "x".join(map(str, inputs.size))
        advice = "; give the CxHxW that it takes" if _concerns_size(error) else ""
        raise TiledSEError(
            f"the network fails on an input of {text}: {type(error).__name__}: {first_line(error)}{advice}"
        ) from error


def _concerns_size(error: Exception) -> bool:
    kinds = (RuntimeError, ValueError, AssertionError, IndexError)
    return isinstance(error, kinds) and bool(_OF_SIZE.search(str(error)) or not str(error))


def _on_shapes(model: nn.Module, inputs: Inputs) -> Observation:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    held = [t for t in (*model.parameters(), *model.buffers()) if isinstance(t, FakeTensor)]
    mode = held[0].fake_mode if held else FakeTensorMode(allow_non_fake_inputs=True)
    device = _device(model)

    def fake(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        where = device if tensor.is_meta or tensor.device.type == "cpu" else tensor.device
        # An image that repeats one number has no strides of its own.
        like = tensor if all(tensor.stride()) else torch.empty(tensor.shape, device="meta")
        with mode:
            return torch.empty_strided(tensor.shape, like.stride(), dtype=tensor.dtype, device=where)

    leaks = Leaks(model)
    try:
        return _run(
            _copy(model, {id(t): _like(t, fake(t)) for t in _held(model) if t.is_meta}),
            inputs.map(fake),
            leaks,
        )
    finally:
        leaks.undo()


def _on_numbers(model: nn.Module, inputs: Inputs) -> Observation:
    device = _device(model)
    leaks = Leaks(model)
    try:
        return _run(_copy(model, {}), inputs.map(lambda tensor: tensor.to(device)), leaks)
    finally:
        leaks.undo()


def _device(model: nn.Module) -> torch.device:
    """Where an image is to lie; the CPU in place of no device."""
    device = next((t.device for t in _held(model)), torch.device("cpu"))
    return torch.device("cpu") if device.type == "meta" else device


def _held(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _like(old: Tensor, new: Tensor) -> Tensor:
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy in eval mode that shares the parameters and nothing else.

    Raises:
        TiledSEError: something in it cannot be copied.
    """
    for parameter in model.parameters():
        memo.setdefault(id(parameter), parameter)
    for module in model.modules():
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor) and value.grad_fn is not None:  # which torch does not copy
                memo.setdefault(id(value), value.detach())
    try:
        return begin_all(in_eval(deep_copy(model, memo)))
    except Exception as error:  # whatever a stranger's object raises
        raise TiledSEError(
            f"the network cannot be copied, which it must be to be looked at: {type(error).__name__}: "
            f"{first_line(error, 120)}"
        ) from error


def _run(model: nn.Module, inputs: Inputs, leaks: Leaks) -> Observation:
    run = Observation()
    stack: list[Call] = []
    flow = Flow(lambda: tuple(stack))

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if leaf is not None]
            tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
            shape = tuple(tensors[0].shape) if tensors else ()
            maps = frozenset(flow.content(tensor) for tensor in tensors)
            call = Call(name, shape, maps, len(tensors) == len(given) == 1)
            stack.append(call)
            if any(isinstance(leaf, fx.Proxy) for leaf in given):
                return  # a forward with inline SE is traced, not run
            run.calls.setdefault(name, []).append(call)
            run.arguments.setdefault(name, []).append(Arguments(args, kwargs).abstract())

        return hook

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        module.register_forward_pre_hook(enter(name), with_kwargs=True, prepend=True)
        module.register_forward_hook(leave, always_call=True)
    flow.given(leaf for leaf in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(leaf, Tensor))
    counter = MacCounter()
    with torch.no_grad(), NormShapes(), leaks, counter, flow:
        model(*inputs.args, **inputs.kwargs)
    run.macs, run.uncounted = counter.macs, counter.uncounted
    run.pools, run.gates = flow.pools, flow.gates
    return run
