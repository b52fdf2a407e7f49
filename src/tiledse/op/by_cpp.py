"""The operator in C++ (cpp/), for maps on a CPU: libraries with a C interface, which pip builds where a compiler is.

There is one for each level of x86-64 (setup.py), and the one that torch's own kernels are of is loaded when it is first
asked for; elsewhere there is one. Nothing is built at run time. They work on torch's own threads.
"""

from __future__ import annotations

import ctypes
import math
import platform
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .choosing import Call

_SOURCES = Path(__file__).with_name("cpp")
_LEVELS = {"AVX512": "v4", "AVX2": "v3"}

# Outputs of this size and up are written past the cache: half of a common L3, so that what fits is found there by the
# layer that comes next.
_PAST_CACHE_BYTES = 8 << 20
# A thread is worth starting for this many bytes: it takes 10 us to start, and these take 100 us to scale.
_BYTES_OF_A_THREAD = 1 << 18

# The products for the weights' gradients read the tiles again for each few rows: they are to stay in the cache.
_FEW_TILES_BYTES = 1 << 17

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTS = {"relu": 0, "silu": 1, "hardswish": 2}
_GATES = {"sigmoid": 0, "hardsigmoid": 1}
_Numbers = ctypes.c_int64 * 16
_NOWHERE: tuple[int | None, ...] = (None, None, None)


class Job(NamedTuple):
    """What a library is to do: its struct Job, and for tiles that slide the grains that each gate sees."""

    numbers: ctypes.Array[ctypes.c_int64]
    inplace: ctypes.Array[ctypes.c_int64]  # the same for a map that is written into
    bounds: np.ndarray | None
    bounds_at: int | None
    form: torch.memory_format
    tiles: int
    reduced: int
    library: ctypes.CDLL


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
    at = None if bounds is None else bounds.ctypes.data
    form = torch.channels_last if call.last else torch.contiguous_format
    tiles, found = n * tile.tiles(height, width), library()
    assert not isinstance(found, str)  # why_not() was asked
    return Job(_Numbers(*numbers), _Numbers(*inplace), bounds, at, form, tiles, call.reduced, found)


def forward(x: Tensor, weights: Sequence[Tensor], job: Job, save: bool, out: Tensor | None) -> list[Tensor]:
    """The scaled map, and with ``save`` descriptors, hidden layer and gates; see registered.py."""
    y = torch.empty_like(x) if out is None else out
    kept, at = [], _NOWHERE
    if save:
        # Each in memory of its own, as torch asks of what an operator gives.
        widths = x.shape[1], job.reduced, x.shape[1]
        kept = [torch.empty((job.tiles, width), dtype=torch.float32) for width in widths]
        at = tuple(part.data_ptr() for part in kept)
    w1, b1, w2, b2 = map(_ready, weights)
    _check(job.library.tiledse_forward(
        x.data_ptr(), y.data_ptr(), w1.data_ptr(), b1.data_ptr(), w2.data_ptr(), b2.data_ptr(), *at, job.bounds_at,
        job.numbers if out is None else job.inplace,
    ))  # fmt: skip
    return [y, *kept]


def backward(
    x: Tensor, grad: Tensor, w1: Tensor, w2: Tensor, hidden: Tensor, gates: Tensor, job: Job
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    grad = grad.contiguous(memory_format=job.form)
    out, to_a1, to_a2 = torch.empty_like(x), torch.empty_like(hidden), torch.empty_like(gates)
    w1, w2, hidden, gates = _ready(w1), _ready(w2), hidden.contiguous(), gates.contiguous()
    _check(job.library.tiledse_backward(
        x.data_ptr(), grad.data_ptr(), out.data_ptr(), w1.data_ptr(), w2.data_ptr(), hidden.data_ptr(),
        gates.data_ptr(), to_a1.data_ptr(), to_a2.data_ptr(), job.bounds_at, job.numbers,
    ))  # fmt: skip
    return out, to_a1, to_a2


def of_weights(
    to_a1: Tensor, to_a2: Tensor, descriptors: Tensor, hidden: Tensor, w1: Tensor, w2: Tensor, job: Job
) -> list[Tensor] | None:
    """Gradients of w1, b1, w2 and b2; None where torch's own products are faster: for more than a few tiles.

    For 2 tiles of 320 channels torch takes 100 us for its four calls and what is about them.
    """
    (tiles, channels), reduced = to_a2.shape, to_a1.shape[1]
    if tiles * channels * 4 > _FEW_TILES_BYTES:
        return None
    found = [torch.empty(shape, dtype=torch.float32) for shape in (w1.shape, reduced, w2.shape, channels)]
    _check(job.library.tiledse_of_weights(
        tiles, channels, reduced, job.numbers[10], to_a1.data_ptr(), to_a2.data_ptr(), descriptors.data_ptr(),
        hidden.data_ptr(), *(part.data_ptr() for part in found),
    ))  # fmt: skip
    return found


def _ready(weight: Tensor) -> Tensor:
    # Each call into torch that it is spared takes a microsecond.
    if weight.dtype is torch.float32 and weight.is_contiguous():
        return weight
    return weight.float().contiguous()


def _check(code: int) -> None:
    if code:
        raise MemoryError("the C++ kernels of tiledse found no memory to work in")


def library() -> ctypes.CDLL | str:
    """The library for this processor, or why there is none."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return load(_LEVELS.get(torch.backends.cpu.get_cpu_capability(), "v2") if x86 else "plain")


@lru_cache(maxsize=8)
def load(level: str) -> ctypes.CDLL | str:
    """The library of a level (setup.py), or why there is none; one that the processor has not kills the process."""
    path = Path(__file__).with_name(f"kernels_{level}.so")
    if not path.exists():
        return "it was not built: install tiledse with pip where g++ or clang++ is"
    try:
        found = ctypes.CDLL(str(path))
        built_from = found.tiledse_sources
    except (OSError, AttributeError) as fault:
        return f"it cannot be loaded: {fault}"
    built_from.restype = ctypes.c_uint32
    if built_from() != sources():
        return "it was built from other sources than these: install tiledse again"
    for function, pointers in ((found.tiledse_forward, 10), (found.tiledse_backward, 10)):
        function.argtypes, function.restype = [ctypes.c_void_p] * pointers + [_Numbers], ctypes.c_int
    found.tiledse_of_weights.argtypes = [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 8
    found.tiledse_use_threads_of.argtypes, found.tiledse_use_threads_of.restype = [ctypes.c_void_p], None
    found.tiledse_use_threads_of(threads_of_torch())
    return found


def sources() -> int:
    """A checksum of the files that libraries are built from, as setup.py takes it."""
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(_SOURCES.glob("*.[ch]*"))))


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
