"""Excitations: which are two 1x1 convolutions, an activation and a gate function, and need no call of their layers.

Nothing about a block is kept between calls: hooks, layers, weights, a class or an excitation may be put in place of
others at any time, and each call reads what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .grids import is_autocast, is_eager

if TYPE_CHECKING:
    from typing import TypeGuard

ACTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "hardswish": F.hardswish}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}
_ACTS = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_GATES = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid"}
# As they were when this was imported: some tools put others in their place, for all modules of a class.
_KNOWN: tuple[type[nn.Module], ...] = (nn.Identity, *_ACTS, *_GATES)
_FORWARDS = {cls: cls.forward for cls in _KNOWN}
_CONV_FORWARDS = nn.Conv2d.forward, nn.Conv2d._conv_forward

_FEW = 2048


class TwoLayers(NamedTuple):
    """Weights of 1x1 convolutions from C to R and back, their biases, and what comes after each, by its name."""

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

    def why_not(self, x: Tensor) -> str | None:
        """Why they are not for maps such as x, by channels, type or device; None if they are."""
        w1, b1, w2, b2, _, _ = self
        of_first, of_second = w1.shape, w2.shape
        if not (of_first[1] == of_second[0] == x.shape[1] and of_first[0] == of_second[1]):
            return "its layers have other channels than the map"
        device, dtype, given = x.device, w1.dtype, x.dtype
        if not w1.device == w2.device == b1.device == b2.device == device:
            return "its layers are on another device than the map"
        if dtype is not w2.dtype or dtype is not b1.dtype or dtype is not b2.dtype:
            return "its layers have several types"
        if given is dtype:
            return None
        if is_autocast(x):
            # Descriptors and gates are float32 in the kernels, whatever autocast would make of them.
            known = torch.float32, torch.get_autocast_dtype(device.type)
            if given in known and dtype in known:
                return None
        return f"its layers are {dtype}, the map {given}"

    def excite(self, descriptors: Tensor) -> Tensor:
        """Gates of descriptors, both (N, C, rows, cols), by two matrix products.

        After a map of 14 MB has gone through the cache, each call into torch takes 50 us, a convolution 100: these
        four calls take 70 to 120 us for a few thousand descriptors where the modules take 260 to 340.
        """
        n, channels, rows, cols = descriptors.shape
        flat = descriptors.permute(0, 2, 3, 1).reshape(n * rows * cols, channels)
        hidden = ACTS[self.act](torch.addmm(self.b1, flat, self.w1.flatten(1).t()))
        gates = GATES[self.gate](torch.addmm(self.b2, hidden, self.w2.flatten(1).t()))
        return gates.view(n, rows, cols, channels).permute(0, 3, 1, 2)


def two_layers(excite: object) -> TwoLayers | str:
    """The layers of an excitation that says what they are, or why they are not two.

    Args:
        excite: A bound method of a block whose ``layers()`` gives the modules that it calls, in order. Hooks and
            parametrisations are more than the layers' weights, and biases must be there.

    Example:
        >>> import tiledse as ts
        >>> found = two_layers(ts.TiledSqueezeExcite(8, 4).excite)
        >>> found.act, found.gate, found.w1.shape
        ('relu', 'sigmoid', torch.Size([4, 8, 1, 1]))
        >>> two_layers(nn.Sequential())
        'its excitation does not say what its layers are'
    """
    # Not getattr(excite, "__self__", None): torch.compile takes that for absent.
    if not isinstance(excite, MethodType):
        return _UNKNOWN
    owner: Any = excite.__self__
    says = getattr(owner, "layers", None)  # somebody else's block may keep modules under this name
    if (
        excite.__func__ is not getattr(type(owner), "excite", None)
        or not isinstance(owner, nn.Module)
        or not isinstance(says, (MethodType, FunctionType))
    ):
        return _UNKNOWN
    called = says()
    if not isinstance(called, tuple):
        return "its excitation is not layers in a row"
    if hooks._has_any_global_hook():
        return "there are hooks for all modules"
    layers = []
    for layer in called:
        cls = type(layer)
        if not isinstance(layer, nn.Module):
            return f"its {cls.__name__} is no module"
        known = _FORWARDS.get(cls)
        if _is_more_than_its_class(layer.__dict__) or (known is not None and cls.forward is not known):
            return f"its {cls.__name__} has hooks, or a forward of its own"
        if cls is not nn.Identity:
            layers.append(layer)
    if len(layers) != 4 or not (_convs_are_as_they_were() and _is_conv(layers[0]) and _is_conv(layers[2])):
        return "its layers are not two 1x1 convolutions with an activation and a gate"
    first, act, second, gate = layers
    act_name, gate_name = _name(act, _ACTS), _name(gate, _GATES)
    if act_name is None or gate_name is None:
        return f"no kernel knows {type(act if act_name is None else gate).__name__}"
    of_first, of_second = vars(first)["_parameters"], vars(second)["_parameters"]
    b1, b2 = of_first.get("bias"), of_second.get("bias")
    if b1 is None or b2 is None:
        return "its layers have no biases"
    if not (_is_plain(b1) and _is_plain(b2)):
        return "its biases are no plain tensors"
    return TwoLayers(of_first["weight"], b1, of_second["weight"], b2, act_name, gate_name)


_UNKNOWN = "its excitation does not say what its layers are"


def _name(layer: nn.Module, known: dict[type[nn.Module], str]) -> str | None:
    cls = type(layer)
    if cls in known:
        return known[cls]
    name, home = cls.__name__.lower(), "timm.layers.activations"  # timm has its own Sigmoid and HardSigmoid
    own = cls.__module__ == home and cls.forward.__module__ == home
    return name if own and name in known.values() else None


def apply(layer: nn.Module, descriptors: Tensor) -> Tensor:
    """Call a layer on descriptors; a 1x1 convolution over the grid of tiles is one matrix product.

    That is 1.1 to 2.5 times as fast as the convolution for the blocks of RegNetY-800MF and MobileNetV3-L at batch 8
    to 64. Below 2048 descriptors the convolution is as fast or faster, and is called, with the channels of few tiles
    side by side in memory (10 us, else 20, for 320 channels of 2 or 4 tiles). So it is where it is more than its
    weights (hooks, a parametrisation, a subclass), and while a compiler or exporter traces.

    Args:
        layer: Any layer that keeps the grid.
        descriptors: (N, C, rows, cols).

    Returns:
        What the layer gives.

    Example:
        >>> fc, z = nn.Conv2d(64, 16, 1), torch.randn(8, 64, 8, 1)
        >>> torch.allclose(apply(fc, z), fc(z), atol=1e-5)
        True
    """
    # torch.fx traces with what is no tensor. A compiler or exporter would hold the batch to what is compared here.
    if torch.compiler.is_compiling() or not isinstance(descriptors, Tensor) or descriptors.dim() != 4:
        return layer(descriptors)
    n, channels, rows, cols = descriptors.shape
    few = descriptors.numel() < _FEW
    if few and (rows * cols == 1 or 4 * rows * cols >= channels):
        return layer(descriptors)
    if not is_pointwise(layer) or not is_eager(descriptors):
        return layer(descriptors)
    if few:
        return layer(descriptors.contiguous(memory_format=torch.channels_last))
    flat = descriptors.permute(0, 2, 3, 1).reshape(n * rows * cols, channels)
    out = F.linear(flat, layer.weight.flatten(1), layer.bias)
    return out.view(n, rows, cols, layer.out_channels).permute(0, 3, 1, 2)


def is_pointwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a 1x1 convolution and no more than its weights."""
    return (
        _convs_are_as_they_were()
        and _is_conv(layer)
        and not _is_more_than_its_class(vars(layer))
        and not hooks._has_any_global_hook()
    )


def _convs_are_as_they_were() -> bool:
    return (nn.Conv2d.forward, nn.Conv2d._conv_forward) == _CONV_FORWARDS


def _is_conv(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(layer) is not nn.Conv2d:
        return False
    own = vars(layer)  # which Module's own lookup takes ten times as long to find
    return (
        own["kernel_size"] == (1, 1)
        and own["stride"] == (1, 1)
        and own["padding"] == (0, 0)
        and own["groups"] == 1
        and _is_plain(own["_parameters"].get("weight"))
    )


def _is_plain(weight: Tensor | None) -> TypeGuard[Tensor]:
    """Numbers, or what stands for them while a compiler or exporter traces; not a quantised weight, say."""
    if type(weight) in (nn.Parameter, Tensor):
        return True
    return torch.compiler.is_compiling() and weight is not None and not is_traceable_wrapper_subclass(weight)


def _is_more_than_its_class(own: Mapping[str, Any]) -> bool:
    """Whether a layer with these attributes has hooks, or a way forward, or weights, of its own."""
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        # What Module and Conv2d find in the layer before they look in its class, or among its parameters.
        or "forward" in own
        or "_call_impl" in own
        or "_conv_forward" in own
        or "weight" in own
        or "bias" in own
    )
