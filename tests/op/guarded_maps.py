"""Run the C++ kernels on maps that end, or begin, where the process may not read: touching that kills it.

Arguments: the levels of the processor whose libraries take turns.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import random
import sys

import torch

import tiledse as ts
from tiledse.op import by_cpp, choosing
from tiledse.op.excitation import TwoLayers, two_layers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_kept: list[object] = []
TILES = (
    "7xW", "3xW", "HxW", "Hx3", "Hx7", "2x5", "7x7", "1x1", "2xW:running", "3xW:upper", "2xW:middle",
    "1xW:running+6", "2xW:window-3+4", "2xW:running-1",
)  # fmt: skip
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def guarded(values: torch.Tensor, at_end: bool) -> torch.Tensor:
    """The same map in memory of its own, up against a page that cannot be touched."""
    page, size = mmap.PAGESIZE, values.nbytes
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (start, start + page + room):
        assert _libc.mprotect(forbidden, page, 0) == 0
    offset = page + (room - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=offset)
    _kept.append(memory)
    return flat.as_strided(values.shape, values.stride()).copy_(values)


def main() -> None:
    libraries = [by_cpp.load(level) for level in sys.argv[1:]]
    assert not any(isinstance(library, str) for library in libraries)
    by_cpp._BYTES_OF_A_THREAD = 4096
    chance, checked = random.Random(0), 0
    for tile, channels_last, past_cache in itertools.product(TILES, (False, True), (False, True)):
        by_cpp._PAST_CACHE_BYTES = 0 if past_cache else 1 << 40
        for dtype in TYPES:
            able = [one for one in libraries if dtype != torch.float16 or one.tiledse_has_float16()]
            if not able:
                continue
            library = chance.choice(able)
            by_cpp.library = lambda library=library: library
            choosing._chosen.cache_clear()
            shape = [chance.randint(*ends) for ends in ((1, 3), (1, 40), (1, 30), (1, 40))]
            block = ts.TiledSqueezeExcite(shape[1], chance.randint(1, 20), tile)
            layers = two_layers(block.excite)
            assert isinstance(layers, TwoLayers)
            x = torch.randn(shape).to(dtype)
            x = x.to(memory_format=torch.channels_last) if channels_last else x
            # Before torch 2.10 there are no threads to run on.
            torch.set_num_threads(chance.randint(1, 3 if by_cpp.threads_of_torch() is not None else 1))
            found = []
            for at_end in (True, False):
                x_, grad = guarded(x, at_end), guarded(x.cos(), at_end)
                with torch.no_grad():
                    kernel, job = choosing.chosen(x_, layers.w1, block.tile, layers.act, layers.gate)
                    assert kernel is by_cpp
                    y, _, hidden, gates = by_cpp.forward(x_, layers.weights, job, True, None)
                    dx, *_ = by_cpp.backward(x_, grad, layers.w1, layers.w2, hidden, gates, job)
                    out = by_cpp.forward(
                        x_, layers.weights, job, False, guarded(torch.zeros_like(x), at_end)
                    )[0]
                    by_cpp.forward(x_, layers.weights, job, False, x_)
                found.append((y, dx, out, x_))
            for one, other in zip(*found):
                torch.testing.assert_close(one, other)
            torch.testing.assert_close(found[0][0], found[0][2])
            torch.testing.assert_close(found[0][0], found[0][3])
            checked += 1
            _kept.clear()
    print("checked", checked)


if __name__ == "__main__":
    main()
