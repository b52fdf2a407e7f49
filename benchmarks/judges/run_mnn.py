"""Run an .onnx file in MNN beside its SE network; print JSON. Runs in the judge's own environment.

``mnnconvert`` runs ``pip install`` by itself: on the PATH that it is given here it meets no environment but its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import MNN
import MNN.nn as nn
import numpy as np
import onnxruntime as ort
from timing import Run, judged


def load(path: str) -> Run:
    """The network as mnnconvert gives it, in float32."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [[v.name for v in values] for values in (session.get_inputs(), session.get_outputs())]
    tool = Path(sys.executable).with_name("mnnconvert")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "net.mnn")
        command = [str(tool), "-f", "ONNX", "--modelFile", path, "--MNNModel", str(made), "--bizCode", "net"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if not made.exists():
            raise SystemExit(
                f"mnnconvert wrote no network: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
            )
        how = nn.create_runtime_manager(({"backend": "CPU", "numThread": 1, "precision": "high"},))
        network = nn.load_module_from_file(str(made), *names, runtime_manager=how)

    def run(x):
        given = MNN.expr.const(x, list(x.shape), MNN.expr.NCHW, MNN.expr.float)
        (out,) = network.onForward([MNN.expr.convert(given, MNN.expr.NC4HW4)])
        if out.data_format == MNN.expr.NC4HW4:
            out = MNN.expr.convert(out, MNN.expr.NCHW)
        return np.asarray(out.read())

    return run


if __name__ == "__main__":
    judged(load, *sys.argv[1:3])
