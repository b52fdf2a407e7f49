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
        "TILEDSE_KERNELS": "triton",
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "src"), os.environ.get("PYTHONPATH", ""))),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300, cwd=_ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "checked 11\n"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_kernels_compile_for_a_gpu(channels_last, backward):
    """Triton and ptxas need no GPU to compile for one: registers are enough, and nothing is spilled to memory."""
    import torch

    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    import tiledse as ts
    from tiledse.op import by_triton, choosing, triton_kernels

    x = torch.empty(1, 144, 28, 28, device="meta")
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    call = choosing.call_of(x, torch.empty(16, 144), ts.Tile.parse("7xW"), "silu", "sigmoid")
    geometry = by_triton.prepare(call)
    assert geometry.strides == tuple(x.stride()[1:])
    constants = {**by_triton.constants(geometry, by_triton.cut_of(geometry, torch.float32), 1), "PHASE": 0}
    warps = constants.pop("num_warps")
    if not backward:
        constants["SAVE"] = True
    kernel = triton_kernels.backward_kernel if backward else triton_kernels.forward_kernel
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


def check() -> int:
    """Every cut of a tile: one program or many, one launch or two, weights in one piece or in several."""
    import torch

    import tiledse as ts
    from tiledse.op import by_triton, choosing, formula
    from tiledse.op.excitation import two_layers
    from tiledse.op.formula import mean

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
        x = torch.randn(2 if number in (0, 2) else 1, channels, *size)  # each program takes its time
        x = x.to(memory_format=torch.channels_last) if channels_last else x
        upstream = torch.randn_like(x)
        layers = two_layers(block.excite)
        call = choosing.call_of(x, layers.w1, block.tile, layers.act, layers.gate)
        geometry = by_triton.prepare(call)
        cut = by_triton.cut(geometry, across, pixels, 4)
        by_triton.cut_of = lambda *_, cut=cut: cut
        by_triton.constants.cache_clear()
        assert choosing.answers(call)[0] == ("triton", None)
        leaf = x.clone().requires_grad_()
        wanted = formula.scale(leaf, block.excite(formula.squeeze(leaf, block.tile, mean)), block.tile)
        wanted.backward(upstream)
        expected = [wanted.detach(), leaf.grad, *(p.grad.clone() for p in block.parameters())]
        block.zero_grad()
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = block(leaf)
        y.backward(upstream)
        assert y.stride() == leaf.grad.stride() == x.stride()
        for ours, reference in zip([y.detach(), leaf.grad, *(p.grad for p in block.parameters())], expected):
            torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(ts.tiled_squeeze_excite(x, block.excite, tile, inplace=True), y)
    del by_triton.cut_of  # the last case's
    by_triton.cut_of = lambda geometry, dtype: by_triton.cut(geometry, 8, 16, 4)
    for dtype in (torch.float16, torch.bfloat16):
        block = ts.TiledSqueezeExcite(6, 4, "2xW").to(dtype)
        x = torch.randn(1, 6, 4, 3).to(dtype)
        with torch.no_grad():
            exact = block.double()(x.double())
            found = block.to(dtype)(x)
        torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)
        # Maps of half precision with weights of float32, as under autocast.
        layers, leaf = two_layers(block.float().excite), x.clone().requires_grad_()
        call = choosing.call_of(x, layers.w1, block.tile, layers.act, layers.gate)
        assert choosing.answers(call)[0] == ("triton", None)
        (y,) = torch.ops.tiledse.forward(leaf, *layers.weights, "2xW", "relu", "sigmoid", False)
        torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.02)
        y.sum().backward()
        assert leaf.grad.dtype == dtype
        assert block.fc1.weight.grad.dtype == torch.float32
    # What it does not take goes to PyTorch, and says why.
    x, block = torch.randn(1, 6, 8, 4), ts.TiledSqueezeExcite(6, 4, "1xW:running+2")
    (taken,) = ts.explain(block, x).taken
    assert (taken.kernel, taken.reasons["triton"]) == ("torch", "it does not squeeze 1xW:running+2")
    return len(cases) + 5


if __name__ == "__main__":
    print("checked", check())
