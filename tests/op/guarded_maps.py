"""Run the C++ kernels on maps that end, or begin, where the process may not read: touching that kills it."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import random

import torch

import tiledse as ts
from tiledse.op import compiled
from tiledse.op.two_layers import two_layers

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_kept: list[object] = []


def guarded(values: torch.Tensor, at_end: bool) -> torch.Tensor:
    """The same map in memory of its own, up against a page that cannot be touched."""
    page, size = mmap.PAGESIZE, values.nbytes
    room = -(-size // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (start, start + page + room):
        assert _libc.mprotect(forbidden, page, 0) == 0
    offset = page + (room - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=torch.float32, count=values.numel(), offset=offset)
    _kept.append(memory)
    return flat.as_strided(values.shape, values.stride()).copy_(values)


def main() -> None:
    assert compiled.library() is not None
    compiled._BYTES_OF_A_THREAD = 4096
    chance, checked = random.Random(0), 0
    tiles = ("7xW", "3xW", "HxW", "Hx3", "Hx7", "2x5", "7x7", "1x1", "2xW:running", "3xW:upper", "2xW:middle")
    for tile, channels_last, past_cache in itertools.product(tiles, (False, True), (False, True)):
        compiled._PAST_CACHE_BYTES = 0 if past_cache else 1 << 40
        for _ in range(4):
            shape = [chance.randint(*ends) for ends in ((1, 3), (1, 40), (1, 30), (1, 40))]
            channels = shape[1]
            block = ts.TiledSqueezeExcite(channels, chance.randint(1, 20), tile)
            layers, wanted = two_layers(block.excite), block.tile
            assert layers is not None
            x = torch.randn(shape)
            x = x.to(memory_format=torch.channels_last) if channels_last else x
            torch.set_num_threads(chance.randint(1, 3))
            found = []
            for at_end in (True, False):
                map_, grad = guarded(x, at_end), guarded(x.cos(), at_end)
                with torch.no_grad():
                    y, _, hidden, gates = compiled.forward_saving(map_, layers, wanted)
                    dx, *_ = compiled.backward(
                        map_, grad, layers.w1, layers.w2, hidden, gates, wanted, layers.act, layers.gate
                    )
                    out = compiled.forward(map_, guarded(torch.zeros_like(x), at_end), layers, wanted)
                    compiled.forward(map_, map_, layers, wanted)
                found.append((y, dx, out, map_))
            for one, other in zip(*found):
                torch.testing.assert_close(one, other)
            torch.testing.assert_close(found[0][0], found[0][2])
            torch.testing.assert_close(found[0][0], found[0][3])
            checked += 1
            _kept.clear()
    print("checked", checked)


if __name__ == "__main__":
    main()
