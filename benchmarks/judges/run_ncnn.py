"""Run an .onnx file in ncnn, through pnnx, beside its SE network; print JSON. Runs in the judge's own environment."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import ncnn
from timing import Run, judged

_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # ncnn reads weights from files that have to stay


def load(path: str) -> Run:
    """The network as pnnx gives it, in float32."""
    folder = tempfile.TemporaryDirectory()
    _KEPT.append(folder)
    own = Path(folder.name, "net.onnx")
    own.write_bytes(Path(path).read_bytes())
    tool = Path(sysconfig.get_path("purelib"), "pnnx", "pnnx")
    done = subprocess.run([str(tool), str(own), "fp16=0"], cwd=folder.name, capture_output=True, text=True)
    param, weights = own.with_name("net.ncnn.param"), own.with_name("net.ncnn.bin")
    if not param.exists():
        raise SystemExit(f"pnnx wrote no network: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    network = ncnn.Net()
    network.opt.num_threads = 1
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.opt.use_bf16_storage = network.opt.use_vulkan_compute = False
    if network.load_param(str(param)) or network.load_model(str(weights)):
        unknown = re.findall(r"layer \S+ not exists or registered", done.stderr)
        raise SystemExit(f"ncnn does not load what pnnx wrote: {unknown[:1] or param.read_text()[:100]}")

    def run(x):
        with network.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x[0]).clone())
            code, out = extractor.extract("out0")
        if code:
            raise SystemExit(f"ncnn fails with code {code}")
        return out.numpy().copy()

    return run


if __name__ == "__main__":
    judged(load, *sys.argv[1:3])
