"""Count multiply-adds with torch's own counter, in the paper's convention.

One for each multiply-add of a convolution or matrix product, and one for each bias and output (what pycls counts,
and so the paper). Pooling, normalisation, activations and products of maps count nothing.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

_aten = torch.ops.aten

# Operators with multiply-adds that torch's counter does not know and our networks might bring.
_HEAVY = {
    "linalg",
    "fft",
    "einsum",
    "cdist",
    "grid_sampler_2d",
    "bilinear",
    "rnn",
    "lstm",
    "gru",
    "deform_conv2d",
}


def _conv(
    x: Any, w: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *args: Any,
    out_shape: Any = None, **kwargs: Any,
) -> int:  # fmt: skip
    return conv_flop_count(x, w, out_shape, transposed=transposed) + (
        0 if bias is None else 2 * prod(out_shape)
    )


def _addmm(bias: Any, a: Any, b: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * (a[-1] + 1)  # torch's own formula has another signature in each release


class _NoModules:
    """In place of torch's tracker of modules, which hooks the gradients of what they take.

    It fails where a parameter is handed from one module to another without gradients, as CaiT's token of the class is.
    """

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


class _Linear(TorchFunctionMode):
    """Adds what torch's counter misses of dense layers: on maps of three axes and more whose channels do not lie last
    in memory they are a matrix product and a sum, and the biases are not counted.

    Args:
        flops: Torch's counter.

    Attributes:
        missed: Multiply-adds that it has not counted.
    """

    def __init__(self, flops: FlopCounterMode) -> None:
        super().__init__()
        self.flops, self.missed = flops, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        if func is not torch.nn.functional.linear or bias is None:
            return func(*args, **kwargs)
        before = self.flops.get_total_flops()
        out = func(*args, **kwargs)
        x = kwargs.get("input", args[0] if args else None)
        expected = out.numel() * (x.shape[-1] + 1)
        self.missed += max(0, expected - (self.flops.get_total_flops() - before) // 2)
        return out


class MacCounter(TorchDispatchMode):
    """Counts the multiply-adds of what runs inside it.

    ``macs`` is the count; ``uncounted`` names operators that multiply and that torch's counter does not know.

    Example:
        >>> with MacCounter() as counter:
        ...     _ = torch.nn.Conv2d(8, 4, 1)(torch.zeros(1, 8, 5, 5))
        >>> counter.macs            # 8 * 4 * 25, and one for each of 4 * 25 biases
        900
    """

    def __init__(self) -> None:
        super().__init__()
        self._flops = FlopCounterMode(
            display=False, custom_mapping={_aten.convolution: _conv, _aten.addmm: _addmm}
        )
        self._flops.mod_tracker = _NoModules()  # type: ignore[assignment]
        self._linear = _Linear(self._flops)
        self._uncounted: dict[str, None] = {}

    @property
    def macs(self) -> int:
        """Multiply-adds so far."""
        return self._flops.get_total_flops() // 2 + self._linear.missed

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operators left out of the count, in the order of their first call."""
        return tuple(self._uncounted)

    def __enter__(self) -> MacCounter:
        self._flops.__enter__()
        self._linear.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._linear.__exit__(*error)
        self._flops.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        namespace, _, name = str(packet).partition(".")
        if packet not in self._flops.flop_registry and (
            namespace not in ("aten", "prims", "prim")
            or any(name.lstrip("_").startswith(heavy) for heavy in _HEAVY)
        ):
            self._uncounted[f"{namespace}.{name}"] = None
        return func(*args, **(kwargs or {}))
