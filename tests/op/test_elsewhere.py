"""The C++ kernels compiled for another processor, and run in an emulator: the numbers are those of this one's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import tiledse as ts
from tests.op.test_by_cpp import CASES
from tiledse.op import by_cpp, choosing

FLAGS = ("-O2", "-std=c++14", "-fopenmp-simd", "-static")
# Compiler, what goes before the program, further flags.
PROCESSORS = {
    "aarch64": ("aarch64-linux-gnu-g++", ["qemu-aarch64"], ()),
    "x86-64 as it began": ("g++", [], ("-mno-sse3",)),
}


@pytest.mark.slow
@pytest.mark.skipif(isinstance(by_cpp.library(), str), reason=f"C++ kernels: {by_cpp.library()}")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_numbers_of_another_processor(processor, tmp_path):
    compiler, emulator, flags = PROCESSORS[processor]
    for needed in (compiler, *emulator):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    program = tmp_path / "elsewhere"
    source = Path(__file__).with_name("elsewhere.cpp")
    subprocess.run([compiler, *FLAGS, *flags, str(source), "-o", str(program)], check=True)
    for number, case in enumerate(CASES):
        tile, images, channels, height, width = case
        torch.manual_seed(number)
        block = ts.TiledSqueezeExcite(channels, 6, tile)
        x = torch.randn(images, channels, height, width).to(
            torch.bfloat16 if number % 3 == 2 else torch.float32
        )
        x = x.to(memory_format=torch.channels_last) if number % 2 else x
        grad = torch.randn_like(x)
        weights = [p.detach() for p in block.parameters()]
        act, gate = ("relu", "silu", "hardswish")[number % 3], ("sigmoid", "hardsigmoid")[number % 2]
        job = by_cpp.prepare(choosing.call_of(x, weights[0], block.tile, act, gate))
        y, z, hidden, gates = by_cpp.forward(x, tuple(weights), job, True, None)
        dx, to_a1, to_a2 = by_cpp.backward(x, grad, weights[0], weights[2], hidden, gates, job)
        bounds = np.zeros(0, np.int64) if job.bounds is None else job.bounds.astype(np.int64)
        given = [np.array([*job.numbers, bounds.size], np.int64).tobytes(), bounds.tobytes()]
        given += [in_memory(value) for value in (x, grad, *weights)]
        done = subprocess.run(
            [*emulator, str(program)], input=b"".join(given), capture_output=True, check=True
        )
        at = 0
        for expected in (y, dx, z, hidden, gates, to_a1, to_a2):
            flat = torch.frombuffer(bytearray(done.stdout[at : at + expected.nbytes]), dtype=expected.dtype)
            at += expected.nbytes
            loose = expected.dtype == torch.bfloat16
            torch.testing.assert_close(
                flat.float(),
                as_it_lies(expected).float(),
                rtol=0.01 if loose else 1e-5,
                atol=0.01 if loose else 1e-5,
            )
        assert at == len(done.stdout)


def as_it_lies(x):
    """The numbers in the order of memory."""
    return x.permute(0, 2, 3, 1).flatten() if x.dim() == 4 and not x.is_contiguous() else x.flatten()


def in_memory(x):
    """Their bytes."""
    flat = as_it_lies(x).contiguous()
    return flat.view(torch.int16).numpy().tobytes() if x.dtype == torch.bfloat16 else flat.numpy().tobytes()
