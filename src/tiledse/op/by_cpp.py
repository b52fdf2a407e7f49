"""The operator in C++ (cpp/), for maps on a CPU: libraries with a C interface, which pip builds where a compiler is.

There is one for each level of x86-64 (setup.py), and the one that torch's own kernels are of is loaded when it is first
asked for; elsewhere there is one. Nothing is built at run time. They work on torch's own threads.
"""

from __future__ import annotations

import ctypes
import math
import platform
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .grids import layout, like

if TYPE_CHECKING:
    from .choosing import Call

# The arguments of cpp/squeeze_excite.cpp: a library that was built from other sources is not called.
_VERSION = 2
_LEVELS = {"AVX512": "v4", "AVX2": "v3"}

# Outputs of this size and up are written past the cache: half of a common L3, so that what fits is found there by the
# layer that comes next.
_PAST_CACHE_BYTES = 8 << 20
# A thread is worth starting for this many bytes: it takes 10 us to start, and these take 100 us to scale.
_BYTES_OF_A_THREAD = 1 << 20

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTS = {"relu": 0, "silu": 1, "hardswish": 2}
_GATES = {"sigmoid": 0, "hardsigmoid": 1}
_Numbers = ctypes.c_int64 * 16


class Job(NamedTuple):
    """What a library is to do: its struct Job, and for tiles that slide the grains that each gate sees."""

    numbers: ctypes.Array[ctypes.c_int64]
    inplace: ctypes.Array[ctypes.c_int64]  # the same for a map that is written into
    bounds: np.ndarray | None
    bounds_at: int | None


def why_not(call: Call) -> str | None:
    """Why the libraries do not take a call; None if they do."""
    if call.device.type != "cpu":
        return f"the map is on {call.device.type}"
    if call.dtype not in _TYPES:
        return f"the map is {call.dtype}; it takes float32, bfloat16 and float16"
    if call.last is None or 0 in call.shape:
        return "the map is neither contiguous nor channels_last, or it is empty"
    found = library()
    if isinstance(found, str):
        return found
    if call.dtype == torch.float16 and not found.tiledse_has_float16():
        return "this processor does not convert float16"
    if call.threads > 1 and threads_of_torch() is None:
        return "torch before 2.10 lends its threads to nobody, and it would run on one"
    return None


def prepare(call: Call) -> Job:
    """The numbers of a call."""
    n, channels, height, width = call.shape
    tile, nbytes = call.tile, math.prod(call.shape) * call.dtype.itemsize
    tall, wide = tile.scaled(height, width)
    first, stop = tile.rows(height) if tile.single else (0, height)
    grain, bounds = 0, None
    if tile.slides and not tile.sees_all(height):
        ends = tile.bounds(height)
        grain = math.gcd(tall, *(int(end) for end in ends.ravel() if end != height))
        bounds = np.ascontiguousarray(-(-ends // grain))
    threads = max(1, min(call.threads, nbytes // _BYTES_OF_A_THREAD))
    numbers: list[int] = [
        n, channels, height, width, tall, wide, first, stop, grain, call.reduced, _ACTS[call.act], _GATES[call.gate],
        bool(call.last), nbytes >= _PAST_CACHE_BYTES, threads, _TYPES[call.dtype],
    ]  # fmt: skip
    inplace = [*numbers[:13], 0, *numbers[14:]]
    return Job(_Numbers(*numbers), _Numbers(*inplace), bounds, None if bounds is None else bounds.ctypes.data)


def forward(x: Tensor, weights: tuple[Tensor, ...], job: Job, save: bool, out: Tensor | None) -> list[Tensor]:
    """The scaled map, and with ``save`` descriptors, hidden layer and gates; see registered.py."""
    inplace = out is not None
    y = like(x) if out is None else out
    kept = []
    if save:
        tiles = -(-x.shape[2] // job.numbers[4]) * -(-x.shape[3] // job.numbers[5]) * x.shape[0]
        widths = x.shape[1], job.numbers[9], x.shape[1]
        # Each in memory of its own, as torch asks of what an operator gives.
        kept = [torch.empty((tiles, width), dtype=torch.float32) for width in widths]
    ready = [_ready(w) for w in weights]
    _call(
        _built().tiledse_forward, x.data_ptr(), y.data_ptr(), *(w.data_ptr() for w in ready),
        *(part.data_ptr() for part in kept) if save else (None, None, None),
        job.bounds_at, job.inplace if inplace else job.numbers,
    )  # fmt: skip
    return [y, *kept]


def backward(
    x: Tensor, grad: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor, gates: Tensor, job: Job
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    grad = grad.contiguous(memory_format=layout(x))
    out, to_a1, to_a2 = like(x), torch.empty_like(hidden), torch.empty_like(gates)
    w1, w2, hidden, gates = _ready(w1), _ready(w2), hidden.contiguous(), gates.contiguous()
    _call(
        _built().tiledse_backward, x.data_ptr(), grad.data_ptr(), out.data_ptr(), w1.data_ptr(), w2.data_ptr(),
        hidden.data_ptr(), gates.data_ptr(), to_a1.data_ptr(), to_a2.data_ptr(), job.bounds_at, job.numbers,
    )  # fmt: skip
    return out, to_a1, to_a2


def _ready(weight: Tensor) -> Tensor:
    # Each call into torch that it is spared takes a microsecond.
    return weight if weight.dtype == torch.float32 and weight.is_contiguous() else weight.float().contiguous()


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if function(*arguments):
        raise MemoryError("the C++ kernels of tiledse found no memory to work in")


def _built() -> ctypes.CDLL:
    found = library()
    assert not isinstance(found, str)  # why_not() was asked
    return found


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | str:
    """The library for this processor, or why there is none."""
    machine = platform.machine().lower()
    x86 = machine in ("x86_64", "amd64")
    level = _LEVELS.get(torch.backends.cpu.get_cpu_capability(), "v2") if x86 else "plain"
    path = Path(__file__).with_name(f"kernels_{level}.so")
    if not path.exists():
        return "it was not built: install tiledse with pip where g++ or clang++ is"
    try:
        found = ctypes.CDLL(str(path))
        version = found.tiledse_version()
    except (OSError, AttributeError) as fault:
        return f"it cannot be loaded: {fault}"
    if version != _VERSION:
        return "it was built from other sources than these: install tiledse again"
    for function, pointers in ((found.tiledse_forward, 10), (found.tiledse_backward, 10)):
        function.argtypes, function.restype = [ctypes.c_void_p] * pointers + [_Numbers], ctypes.c_int
    found.tiledse_use_threads_of.argtypes, found.tiledse_use_threads_of.restype = [ctypes.c_void_p], None
    found.tiledse_use_threads_of(threads_of_torch())
    return found


@lru_cache(maxsize=1)
def threads_of_torch() -> int | None:
    """Where ``torch_parallel_for`` of torch's stable C interface lies; None before torch 2.10."""
    folder = Path(torch.__file__).with_name("lib")
    for path in (*folder.glob("libtorch_cpu.so"), *folder.glob("libtorch_cpu.dylib")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).torch_parallel_for, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
