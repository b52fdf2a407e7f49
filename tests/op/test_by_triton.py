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
    assert done.stdout.split() == ["checked", "9", "fused", "8"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_kernels_compile_for_a_gpu(channels_last, backward):
    """Triton and ptxas need no GPU to compile for one: registers are enough, and nothing is spilled to memory."""
    import torch

    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    from tiledse.op import fused, fused_kernels

    x = torch.empty(1, 144, 28, 28, device="meta")
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    strides = tuple(x.stride()[1:])
    geometry = fused.Geometry(144, 16, 28, 28, 7, 28, strides, "silu", "sigmoid")
    cut = fused.cut_of(geometry, torch.float32)
    constants = {**fused.constants(geometry, cut, 1), "PHASE": 0}
    warps = constants.pop("num_warps")
    if not backward:
        constants["SAVE"] = True
    kernel = fused_kernels.backward_kernel if backward else fused_kernels.forward_kernel
    types = dict.fromkeys(constants, "constexpr") | {"sn": "i32", "ready": "*i32"}
    compiled = compiler.compile(
        compiler.ASTSource(
            fn=kernel,
            signature={name: types.get(name, "*fp32") for name in kernel.arg_names},
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        ),
        target=backends.GPUTarget("cuda", 90, 32),
        options={"num_warps": warps},
    )
    assert ".local" not in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 1000


def check_fused() -> int:
    """Every cut of a tile: one program or many, one launch or two, weights in one piece or in several."""
    import torch

    import tiledse as ts
    from tiledse.op import formula, fused, whole
    from tiledse.op.formula import mean
    from tiledse.op.two_layers import two_layers

    acts, gates = (torch.nn.ReLU, torch.nn.SiLU, torch.nn.Hardswish), (torch.nn.Sigmoid, torch.nn.Hardsigmoid)
    # (tile, map, channels, hidden layer, channels and pixels of a program, layout)
    cases = [
        ("HxW", (3, 4), 5, 3, 8, 16, False), ("3xW", (7, 4), 5, 3, 2, 4, True),
        ("2x3", (5, 4), 5, 3, 4, 4, False), ("Hx2", (3, 5), 5, 3, 2, 4, True),
        ("2xW", (4, 4), 6, 18, 64, 8, False), ("2xW", (5, 4), 6, 18, 4, 4, True),
    ]  # fmt: skip
    for number, (tile, size, channels, reduced, across, pixels, channels_last) in enumerate(cases):
        torch.manual_seed(number)
        block = ts.TiledSqueezeExcite(
            channels, reduced, tile, act=acts[number % 3], gate=gates[number % 2]
        )  # fmt: skip
        x = torch.randn(2, channels, *size)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        upstream = torch.randn_like(x)
        layers = two_layers(block.excite)
        layers = type(layers)(*(w.detach() for w in layers.weights), layers.act, layers.gate)
        geometry = fused.geometry(x, block.tile, reduced, layers.act, layers.gate)
        cut = fused.cut(geometry, across, pixels, 4)
        fused.cut_of = lambda *_, cut=cut: cut
        fused.constants.cache_clear()
        leaf = x.clone().requires_grad_()
        wanted = formula.scale(leaf, block.excite(formula.squeeze(leaf, block.tile, mean)), block.tile)
        wanted.backward(upstream)
        out, *saved = whole.forward_saving(x, layers, block.tile)
        torch.testing.assert_close(out, wanted.detach())
        found = whole.gradients(x, upstream, layers, saved, block.tile)
        expected = [leaf.grad, *(p.grad.flatten(1) if p.dim() > 1 else p.grad for p in block.parameters())]
        for ours, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    for dtype in (torch.float16, torch.bfloat16):
        block = ts.TiledSqueezeExcite(6, 4, "2xW").to(dtype)
        x = torch.randn(2, 6, 4, 3).to(dtype)
        with torch.no_grad():
            exact = block.double()(x.double())
            found = block.to(dtype)(x)
        torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)
    return len(cases) + 2


def check() -> int:
    import torch

    import tiledse as ts
    from tiledse.op import formula, functional, kernels
    from tiledse.op.formula import mean

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
        # float64: the kernels of parts, not the fused one
        block = ts.TiledSqueezeExcite(5, 3, tile).double()
        x = torch.randn(2, 5, *size, dtype=torch.float64)
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        upstream = torch.randn_like(x)
        found = []

        def plain(x, block=block):
            return formula.scale(x, block.excite(formula.squeeze(x, block.tile, mean)), block.tile)

        for way in (block, plain):
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
                formula.squeeze(half.double(), block.tile, mean).half(),
                rtol=2e-3,
                atol=2e-3,
            )
        checked += 1
    return checked


if __name__ == "__main__":
    print("checked", check())
    print("fused", check_fused())
