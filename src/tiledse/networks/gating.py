"""Read off the gate while a block's own forward runs on a map of one pixel.

A map of one pixel is its own mean, so the forward of an SE block, called on it, computes the gate of that mean. What
it then does with the map is read as ``factor * map + offset``: each product, sum and reshape of the map is noted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _named(names: Iterable[str]) -> frozenset[Callable[..., Any]]:
    """The functions of these names, as functions, methods, operators and in place."""
    found = set()
    for name in names:
        for place in (torch, Tensor, F, operator):
            for spelled in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__", f"i{name}"):
                function = getattr(place, spelled, None)
                if callable(function):
                    found.add(function)
    return frozenset(found)


_MUL = _named(("mul", "multiply"))
_ADD = _named(("add",))
_SUB = _named(("sub", "subtract"))
_REVERSED_SUB = frozenset({torch.rsub, Tensor.__rsub__})
_DIV = _named(("div", "divide", "true_divide", "truediv")) - {Tensor.__rtruediv__, Tensor.__rdiv__}
_ARITHMETIC = _MUL | _ADD | _SUB | _DIV
_IN_PLACE = frozenset(
    f for f in _ARITHMETIC if (name := f.__name__).startswith("__i") or (name[-1] == "_" and name[0] != "_")
) | {operator.imul, operator.iadd, operator.isub, operator.itruediv}
_POOLS = frozenset(
    {
        F.adaptive_avg_pool1d,
        F.adaptive_avg_pool2d,
        F.adaptive_avg_pool3d,
        F.avg_pool1d,
        F.avg_pool2d,
        F.avg_pool3d,
        torch.adaptive_avg_pool1d,
        torch._C._nn.adaptive_avg_pool2d,
        torch._C._nn.adaptive_avg_pool3d,
    }
)
# What moves elements and does nothing to them; a change of type or of memory is one, a filling of frames that are none.
_MOVES = _named(
    ("view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis",
     "unsqueeze", "squeeze", "contiguous", "clone", "getitem", "to", "type", "type_as", "float", "half", "double",
     "bfloat16", "view_as", "reshape_as", "alias", "ravel", "masked_fill")
)  # fmt: skip


class Form(NamedTuple):
    """A tensor that is ``factor * map + offset``; None stands for 1 and for 0."""

    tensor: Any
    factor: Any = None
    offset: Any = None


class Gating(TorchFunctionMode):
    """Notes what is done with a map while it runs.

    Args:
        forms: The map to begin with; what is made of it is added.
    """

    def __init__(self, forms: list[Form]) -> None:
        super().__init__()
        self.forms = forms

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = form_of(self.forms, args[0]) if args else None
        if first is not None:
            if func in _POOLS and first.factor is None and first.offset is None:
                # A window of fixed size pools the map that it is made for; this one is pooled already.
                return args[0].view(args[0].shape)
            if func in _MOVES:
                return self._moved(func, first, args, kwargs)
        if func in _ARITHMETIC and len(args) == 2 and not kwargs:
            second = form_of(self.forms, args[1])
            made = _combine(func, args, first, second) if first or second else None
            if made is not None:
                # Nothing is written in place: the pixel may be what a gradient needs.
                out = args[0] if func in _IN_PLACE and first is not None else _value(func, args)
                self.forms.append(Form(out, *made))
                return out
        return func(*args, **kwargs)

    def _moved(self, func: Any, form: Form, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if isinstance(out, (tuple, list)):
            return out
        moved = [
            func(part.expand(form.tensor.shape), *args[1:], **kwargs)
            if isinstance(part, Tensor) and part.dim()
            else part
            for part in (form.factor, form.offset)
        ]
        self.forms.append(Form(out, *moved))
        return out


def form_of(forms: list[Form], value: Any) -> Form | None:
    """How a value was made of the map; None where it was not."""
    for form in reversed(forms):
        if form.tensor is value:
            return form
    return None


def _value(func: Any, args: tuple[Any, ...]) -> Any:
    for functions, plain in ((_MUL, torch.mul), (_ADD, torch.add), (_SUB, torch.sub), (_DIV, torch.div)):
        if func in _IN_PLACE and func in functions:
            return plain(*args)
    return func(*args)


def _combine(func: Any, args: Any, a: Form | None, b: Form | None) -> tuple[Any, Any] | None:
    """Factor and offset of a product, sum, difference or quotient; None where it has none."""
    if func in _REVERSED_SUB or func is getattr(Tensor, "__rsub__", None):
        return _sum(_times(a, -1), b, args[1])
    if func in _SUB:
        return _sum(a, _times(b, -1), args[0]) if b else _sum(a, None, args[1], -1)
    if func in _ADD:
        return _sum(a, b, args[0] if a is None else args[1])
    if func in _DIV:
        return None if b else _parts(_times(a, args[1], operator.truediv))
    if a and b:
        return None
    return _parts(_times(a, args[1]) if a else _times(b, args[0]))


def _parts(form: Form | None) -> tuple[Any, Any] | None:
    return None if form is None else (form.factor, form.offset)


def _times(form: Form | None, by: Any, op: Callable[[Any, Any], Any] = operator.mul) -> Form | None:
    if form is None:
        return None
    # The gate itself is the factor where the map has none yet: 1 * gate would be one more operator.
    factor = by if form.factor is None and op is operator.mul else op(_or(form.factor, 1.0), by)
    return Form(form.tensor, factor, None if form.offset is None else op(form.offset, by))


def _sum(a: Form | None, b: Form | None, other: Any, sign: int = 1) -> tuple[Any, Any]:
    if a is not None and b is not None:
        offset = b.offset if a.offset is None else a.offset if b.offset is None else a.offset + b.offset
        return _or(a.factor, 1.0) + _or(b.factor, 1.0), offset
    form = a if a is not None else b
    assert form is not None
    added = other if sign == 1 else -other
    return form.factor, added if form.offset is None else form.offset + added


def _or(value: Any, default: float) -> Any:
    return default if value is None else value
