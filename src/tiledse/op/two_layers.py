"""Excitations that need no call of their layers: two 1x1 convolutions, an activation and a gate function."""

from __future__ import annotations

from types import MethodType
from typing import NamedTuple

from torch import Tensor, nn

from .excitation import is_pointwise

_ACTS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_GATES = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid"}


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
    owner = excite.__self__
    layers = owner.layers() if excite.__func__ is getattr(type(owner), "excite", None) else None
    if layers is None:
        return None
    layers = tuple(layer for layer in layers if type(layer) is not nn.Identity)
    if len(layers) != 4:
        return None
    first, act, second, gate = layers
    if not (is_pointwise(first) and is_pointwise(second)) or first.bias is None or second.bias is None:
        return None
    act_name, gate_name = _name(act, _ACTS), _name(gate, _GATES)
    if act_name is None or gate_name is None:
        return None
    return TwoLayers(
        first.weight.flatten(1), first.bias, second.weight.flatten(1), second.bias, act_name, gate_name
    )


def _name(layer: nn.Module, known: dict[type[nn.Module], str]) -> str | None:
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return None
    cls = type(layer)
    if cls in known:
        return known[cls]
    name = cls.__name__.lower()  # timm has its own Sigmoid and HardSigmoid
    return name if cls.__module__ == "timm.layers.activations" and name in known.values() else None
