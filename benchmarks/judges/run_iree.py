"""Run an .onnx file in IREE beside its SE network; print JSON. Runs in the judge's own environment."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import iree.runtime as rt
import numpy as np
from timing import Run, judged


def load(path: str) -> Run:
    """The network, compiled for this machine's own instructions, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        mlir, made = Path(folder, "net.mlir"), Path(folder, "net.vmfb")
        tool("iree-import-onnx", path, "--opset-version=17", "-o", str(mlir))
        tool(
            "iree-compile", str(mlir), "--iree-input-type=onnx", "--iree-hal-target-device=local",
            "--iree-hal-local-target-device-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host", "-o", str(made),
        )  # fmt: skip
        device = rt.get_device("local-sync")
        module = rt.load_vm_flatbuffer(made.read_bytes(), driver="local-sync")
    name = next(
        n for n in module.vm_module.function_names if n not in ("__init", "__deinit") and "$" not in n
    )
    function = getattr(module, name)
    assert device is not None
    # A copy: what the device gives is a view of memory that the next network's run takes.
    return lambda x: np.array(function(x))


def tool(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name(name)), *arguments], capture_output=True, text=True
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["it said nothing"]
        raise SystemExit(f"{name}: {said[0][:300]}")


if __name__ == "__main__":
    judged(load, *sys.argv[1:3])
