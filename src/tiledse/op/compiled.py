"""The kernels of cpp/: built by the system's C++ compiler when they are first asked for.

TILEDSE_CPP=1 asks for them. They take all tiles of float32 maps on a CPU, with an excitation of two layers, and give
the numbers of the formulas in PyTorch, which serve everything else, and everywhere without a compiler. The library is
kept in TILEDSE_CACHE, or ~/.cache/tiledse, under a name that says source, compiler and processor; building it takes
three seconds. It is loaded from a folder that nobody else can write (cache_folder.py). It works on torch's own threads,
as many as torch does, where there is a megabyte for each.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..tile import Tile
from .cache_folder import is_own_file, private_folder
from .grids import is_channels_last, is_dense, layout, like
from .sliding import by_rows

_SOURCE = Path(__file__).with_name("cpp") / "squeeze_excite.cpp"
_FLAGS = ("-O3", "-march=native", "-std=c++14", "-shared", "-fPIC", "-fopenmp-simd", "-pthread")

# Outputs of this size and up are written past the cache: half of a common L3, so that what fits is found there by the
# layer that comes next.
_PAST_CACHE_BYTES = 8 << 20
# A thread is worth starting for this many bytes: it takes 10 us to start, and these take 100 us to scale.
_BYTES_OF_A_THREAD = 1 << 20

_ACTS = {"relu": 0, "silu": 1, "hardswish": 2}
_GATES = {"sigmoid": 0, "hardsigmoid": 1}
_Numbers = ctypes.c_int64 * 15


def asked(x: Tensor) -> bool:
    """Whether the kernels are asked for, and x is of their type."""
    return os.environ.get("TILEDSE_CPP") == "1" and x.device.type == "cpu" and x.dtype == torch.float32


def takes(x: Tensor, tile: Tile) -> bool:
    """Whether the kernels are there and take this: a dense float32 map on a CPU, and any tile but sliding ones."""
    return (
        asked(x) and x.numel() > 0 and is_dense(x) and not by_rows(tile, x.shape[2]) and library() is not None
    )


def forward(
    x: Tensor, out: Tensor, layers: tuple[Tensor, Tensor, Tensor, Tensor, str, str], tile: Tile,
    saved: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """``out`` = x by its gates; ``saved`` is filled with descriptors, hidden layer and gates, a row for each tile."""
    *weights, act, gate = layers
    kept = (None, None, None) if saved is None else (part.data_ptr() for part in saved)
    weights = [w.contiguous() for w in weights]
    inplace = out.data_ptr() == x.data_ptr()
    _built().tiledse_forward(
        x.data_ptr(), out.data_ptr(), *(w.data_ptr() for w in weights), *kept,
        _numbers(x, weights[1].shape[0], tile, act, gate, inplace),
    )  # fmt: skip
    if inplace and not out.is_inference():
        torch.autograd.graph.increment_version(
            out
        )  # torch saw nobody write, but whoever saved it must learn of it
    return out


def forward_saving(
    x: Tensor, layers: tuple[Tensor, Tensor, Tensor, Tensor, str, str], tile: Tile
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scaled map, descriptors, hidden layer and gates; see library.squeeze_excite."""
    rows, cols = tile.grid(*x.shape[2:])
    tiles = x.shape[0] * rows * cols
    descriptors, hidden, gates = (
        x.new_empty((tiles, n)) for n in (x.shape[1], layers[1].shape[0], x.shape[1])
    )
    out = forward(x, like(x), layers, tile, (descriptors, hidden, gates))
    return out, descriptors, hidden, gates


def backward(
    x: Tensor,
    grad: Tensor,
    w1: Tensor,
    w2: Tensor,
    hidden: Tensor,
    gates: Tensor,
    tile: Tile,
    act: str,
    gate: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the map, and of the sums of both layers, (tiles, R) and (tiles, C)."""
    grad = grad.contiguous(memory_format=layout(x))
    out, to_a1, to_a2 = like(x), torch.empty_like(hidden), torch.empty_like(gates)
    w1, w2 = w1.contiguous(), w2.contiguous()
    _built().tiledse_backward(
        x.data_ptr(), grad.data_ptr(), out.data_ptr(), w1.data_ptr(), w2.data_ptr(), hidden.data_ptr(),
        gates.data_ptr(), to_a1.data_ptr(), to_a2.data_ptr(), _numbers(x, w1.shape[0], tile, act, gate),
    )  # fmt: skip
    return out, to_a1, to_a2


def _numbers(
    x: Tensor, reduced: int, tile: Tile, act: str, gate: str, inplace: bool = False
) -> ctypes.Array[ctypes.c_int64]:
    past_cache = not inplace and x.nbytes >= _PAST_CACHE_BYTES
    threads = max(1, min(torch.get_num_threads(), x.nbytes // _BYTES_OF_A_THREAD))
    return _job(x.shape, is_channels_last(x), tile, reduced, act, gate, past_cache, threads)


@lru_cache(maxsize=1024)
def _job(
    shape: torch.Size, last: bool, tile: Tile, reduced: int, act: str, gate: str, past_cache: bool, threads: int
) -> ctypes.Array[ctypes.c_int64]:  # fmt: skip
    """What cpp/maps.h has as Job; it is read, and never written."""
    height, width = shape[2:]
    tall, wide = tile.scaled(height, width)
    first, stop = tile.rows(height) if tile.single else (0, height)
    return _Numbers(
        *shape, tall, wide, first, stop, tile.squeeze == "running",
        reduced, _ACTS[act], _GATES[gate], last, past_cache, threads,
    )  # fmt: skip


def _built() -> ctypes.CDLL:
    found = library()
    assert found is not None  # takes() was asked
    return found


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The built library; None, with a warning, where it cannot be built."""
    try:
        found = ctypes.CDLL(str(build()))
    # RuntimeError: nobody knows where home is. ValueError: CXX has a quote too many.
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as fault:
        reason = getattr(fault, "stderr", None) or str(fault)
        warnings.warn(
            f"TILEDSE_CPP=1, but the C++ kernels cannot be built, so plain PyTorch is used: {reason.strip()[:500]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    for function, pointers in ((found.tiledse_forward, 9), (found.tiledse_backward, 9)):
        function.argtypes, function.restype = [ctypes.c_void_p] * pointers + [_Numbers], None
    found.tiledse_use_threads_of.argtypes, found.tiledse_use_threads_of.restype = [ctypes.c_void_p], None
    found.tiledse_use_threads_of(_threads_of_torch())
    return found


def _threads_of_torch() -> int | None:
    """GOMP_parallel of the OpenMP that torch has loaded: libgomp, or Intel's or LLVM's, which have it too.

    None where there is none, or where it cannot be told which; then the kernels start threads of their own.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    names = {line.split(None, 5)[-1] for line in lines if line.count(" ") and "/" in line}
    found = [name for name in names if Path(name).name.startswith(("libgomp", "libiomp", "libomp"))]
    torch_s = [name for name in found if Path(name).parent.name in ("lib", "torch.libs") and "torch" in name]
    for name in torch_s or (found if len(found) == 1 else []):
        try:
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def build() -> Path:
    """Build the library unless it is there.

    Returns:
        Its file.

    Raises:
        OSError: there is no compiler (c++, g++ or clang++, or what CXX names), or the cache cannot be written.
        subprocess.SubprocessError: it does not compile.
    """
    named = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    # As make takes it, "ccache g++" too; or one file, which may have spaces in its name.
    compiler = [named] if named and shutil.which(named) else shlex.split(named or "")
    if not compiler:
        raise OSError("no C++ compiler was found; install g++ or clang++, or name one in CXX")
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no compiler {compiler[0]}, which CXX names")
    cache = Path(os.environ.get("TILEDSE_CACHE") or Path.home() / ".cache" / "tiledse")
    # Not all files: what editors and file managers leave there need not be text.
    sources = [path.read_text() for path in sorted(_SOURCE.parent.glob("*.[ch]*"))]
    facts = "\n".join((*sources, *compiler, *_FLAGS, _processor()))
    folder, whose = private_folder(cache / "kernels")
    if whose is not None:
        warnings.warn(
            f"the C++ kernels are built anew in each process: {whose}; name another folder in TILEDSE_CACHE",
            RuntimeWarning,
            stacklevel=3,
        )
    target = folder / f"op-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.so"
    if is_own_file(target):
        return target
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        part = Path(inside, "op.so")
        subprocess.run(
            [*compiler, *_FLAGS, str(_SOURCE), "-o", str(part)],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        part.chmod(0o700)  # the umask may let others write
        part.replace(target)  # whole or not at all, whoever else builds it
    return target


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
