"""Excitations that need no call of their layers: two 1x1 convolutions, an activation and a gate function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from .excitation import is_pointwise

_ACTS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_GATES = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid"}

ACTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "hardswish": F.hardswish}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}
_ACTS_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "silu": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
}
_GATES_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid_,
    "hardsigmoid": lambda x: F.hardsigmoid(x, inplace=True),
}


class TwoLayers(NamedTuple):
    """Weights (R, C) and (C, R), biases, and what comes after each: names of library.py."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    act: str
    gate: str

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases, in the order of the layers."""
        return self[:4]

    def fit(self, x: Tensor) -> bool:
        """Whether they are for maps such as x: channels, type and device."""
        w1, b1, w2, b2 = self[:4]
        return (
            w1.shape[1] == w2.shape[0] == x.shape[1]
            and w1.shape[0] == w2.shape[1]
            and w1.dtype == w2.dtype == b1.dtype == b2.dtype == x.dtype
            and w1.device == w2.device == b1.device == b2.device == x.device
        )

    def excite(self, descriptors: Tensor) -> Tensor:
        """Gates of descriptors, both (N, C, rows, cols), by two matrix products.

        After a map of 14 MB has gone through the cache, each call into torch takes 50 us, a convolution 100: these
        four calls take 70 to 120 us for a few thousand descriptors where the modules take 260 to 340.
        """
        n, channels, rows, cols = descriptors.shape
        flat = descriptors.permute(0, 2, 3, 1).reshape(n * rows * cols, channels)
        recorded = torch.is_grad_enabled()
        hidden = torch.addmm(self.b1, flat, self.w1.t())
        hidden = (ACTS if recorded else _ACTS_IN_PLACE)[self.act](hidden)
        gates = torch.addmm(self.b2, hidden, self.w2.t())
        gates = (GATES if recorded else _GATES_IN_PLACE)[self.gate](gates)
        if rows * cols == 1:
            return gates.view(n, channels, 1, 1)
        return gates.view(n, rows, cols, channels).permute(0, 3, 1, 2)


def two_layers(excite: object) -> TwoLayers | None:
    """The layers of an excitation that says what they are, or None.

    Args:
        excite: A bound method of a block whose ``layers()`` gives the modules that it calls, in order. Hooks and
            parametrisations are more than the layers' weights, and biases must be there.

    Example:
        >>> import tiledse as ts
        >>> found = two_layers(ts.TiledSqueezeExcite(8, 4).excite)
        >>> found.act, found.gate, found.w1.shape
        ('relu', 'sigmoid', torch.Size([4, 8]))
        >>> two_layers(nn.Sequential())
    """
    # Not getattr(excite, "__self__", None): torch.compile takes that for absent.
    if not isinstance(excite, MethodType) or not hasattr(excite.__self__, "layers"):
        return None
    owner: Any = excite.__self__
    if excite.__func__ is not getattr(type(owner), "excite", None):
        return None
    says = owner.layers  # somebody else's block may keep modules under this name
    if not isinstance(owner, nn.Module) or not isinstance(says, (MethodType, FunctionType)):
        return None
    if torch.compiler.is_compiling():
        found = _look(owner)
        return found.layers() if found is not None else None
    functions = excite.__func__, getattr(says, "__func__", says)
    known = _known.get(owner)
    if known is None or known.functions != functions or not known.holds(owner):
        known = _look(owner)
        if known is None:
            return None
        known.functions = functions
        _known[owner] = known
    return known.layers()


class _Known:
    """What was found in a block, and what it was found in: to look again takes 50 us when the cache is cold."""

    functions: tuple[object, object] | None = None  # what excite and layers were

    def __init__(
        self, owner: nn.Module, called: tuple[nn.Module, ...], first: nn.Module, second: nn.Module,
        parameters: tuple[Tensor, Tensor, Tensor, Tensor], names: tuple[str, str],
    ) -> None:  # fmt: skip
        self._modules = tuple(owner._modules.values())
        self._called, self._classes = called, tuple(map(type, called))
        self._first, self._second = first, second
        self._parameters, self._names = parameters, names
        self._memory: tuple[object, ...] | None = None

    def layers(self) -> TwoLayers:
        """With views of the weights; where gradients are recorded, views that belong to this call."""
        w1, b1, w2, b2 = self._parameters
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return TwoLayers(w1.view(w1.shape[:2]), b1, w2.view(w2.shape[:2]), b2, *self._names)
        # The views are made again when a weight has other memory, or when `.data` gave it another shape.
        memory = w1.data_ptr(), w2.data_ptr(), w1.shape, w2.shape, w1.stride(), w2.stride()
        if memory != self._memory:
            self._memory = memory
            # Of .data: views of the parameters themselves would keep torch.utils.swap_tensors from them.
            self._views = TwoLayers(
                w1.data.view(w1.shape[:2]), b1, w2.data.view(w2.shape[:2]), b2, *self._names
            )
        return self._views

    def holds(self, owner: nn.Module) -> bool:
        """Whether nothing was put in place of a layer or weight since, or about one."""
        if tuple(owner._modules.values()) != self._modules or hooks._has_any_global_hook():
            return False
        for layer, cls in zip(self._called, self._classes):
            own = vars(layer)
            if type(layer) is not cls or _is_more_than_its_class(own):
                return False
        first, second = vars(self._first)["_parameters"], vars(self._second)["_parameters"]
        w1, b1, w2, b2 = self._parameters
        return (
            first.get("weight") is w1
            and first.get("bias") is b1
            and second.get("weight") is w2
            and second.get("bias") is b2
        )


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _look(owner: Any) -> _Known | None:
    called = owner.layers()
    if not isinstance(called, tuple):
        return None
    layers = [layer for layer in called if type(layer) is not nn.Identity]
    if len(layers) != 4 or any(_is_more_than_its_class(vars(layer)) for layer in called):
        return None
    first, act, second, gate = layers
    if not (is_pointwise(first) and is_pointwise(second)):
        return None
    act_name, gate_name = _name(act, _ACTS), _name(gate, _GATES)
    if act_name is None or gate_name is None:
        return None
    b1, b2 = first.bias, second.bias
    if b1 is None or b2 is None:
        return None
    return _Known(owner, called, first, second, (first.weight, b1, second.weight, b2), (act_name, gate_name))


def _is_more_than_its_class(own: Mapping[str, Any]) -> bool:
    """Whether a layer with these attributes has hooks, or a way forward of its own."""
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def _name(layer: nn.Module, known: dict[type[nn.Module], str]) -> str | None:
    cls = type(layer)
    if cls in known:
        return known[cls]
    name = cls.__name__.lower()  # timm has its own Sigmoid and HardSigmoid
    return name if cls.__module__ == "timm.layers.activations" and name in known.values() else None
