"""The Triton kernels, through Triton's interpreter: no GPU is needed, and no speed is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

_ROOT = Path(__file__).resolve().parents[2]


def test_kernels_give_the_formula_s_numbers_and_gradients():
    """In a process of its own, because Triton chooses its interpreter when it is imported."""
    environment = {
        **os.environ,
        "TILEDSE_TRITON": "1",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "src"), os.environ.get("PYTHONPATH", ""))),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300, cwd=_ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["checked", "9"]


def check() -> int:
    import torch

    import tiledse as ts
    from tiledse.op import functional, kernels
    from tiledse.op.functional import _scale, _squeeze, mean

    torch.set_num_threads(1)
    functional.SMALL_BYTES = 0
    launched = []
    for name in ("tile_sums", "multiply"):
        kernel = getattr(kernels, name)
        setattr(kernels, name, lambda *a, k=kernel, n=name, **kw: (launched.append(n), k(*a, **kw))[1])
    checked = 0
    # (tile, size, elements of a sum that is not split); maps are small, because the interpreter is slow.
    cases = [(tile, (5, 4), 1 << 14) for tile in ("HxW", "2xW", "Hx3", "2x3", "2xW:running", "2xW:middle")]
    cases += [("HxW", (5, 4), 6), ("3xW", (7, 2), 2), ("HxW", (5, 4), 6)]
    for number, (tile, size, split) in enumerate(cases):
        channels_last = number % 2 == 0
        kernels._SPLIT_ELEMENTS = split
        torch.manual_seed(0)
        block = ts.TiledSqueezeExcite(5, 3, tile).double()
        x = torch.randn(2, 5, *size, dtype=torch.float64)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        upstream = torch.randn_like(x)
        found = []

        def formula(x, block=block):
            return _scale(x, block.excite(_squeeze(x, block.tile, mean)), block.tile)

        for way in (block, formula):
            block.zero_grad()
            leaf = x.clone().requires_grad_()
            launched.clear()
            y = way(leaf)
            y.backward(upstream)
            if way is block:
                assert launched == ["tile_sums", "multiply", "tile_sums", "multiply"], launched
                assert leaf.grad.stride() == x.stride()
            else:
                assert not launched
            found.append([y.detach(), leaf.grad, *(p.grad.clone() for p in block.parameters())])
        for ours, reference in zip(*found, strict=True):
            torch.testing.assert_close(ours, reference)
        with torch.no_grad():
            z = x.clone(memory_format=torch.preserve_format)
            ts.tiled_squeeze_excite(z, block.excite, tile, inplace=True)
            torch.testing.assert_close(z, found[0][0])
            half = x.half()
            torch.testing.assert_close(
                ts.op.squeeze(half, tile),
                _squeeze(half.double(), block.tile, mean).half(),
                rtol=2e-3,
                atol=2e-3,
            )
        checked += 1
    return checked


if __name__ == "__main__":
    print("checked", check())
