"""Compile an .onnx file with Rockchip's rknn-toolkit2; print what it says as JSON. Runs in the judge's own environment.

Its table counts no cycles for Mul, Resize, AveragePool and Concat, so what it reads and writes counts as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile

_LAYER = re.compile(
    r"\]\s+\d+\s+(?P<kind>\w+)\s+\w+\s+(?P<at>NPU|CPU|GPU)\s.*\s\d+/\d+/(?P<cycles>\d+)\s+(?P<kib>[\d.]+)\s"
)


def main() -> None:
    """Arguments: the file; the chip and the type of numbers, such as ``rk3588 f16``."""
    path, (chip, _) = sys.argv[1], sys.argv[2].split()
    with tempfile.TemporaryDirectory() as folder:  # it leaves files where it runs
        command = [sys.executable, "-W", "ignore", __file__, "--compile", path, chip]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    layers = [m.groupdict() for m in map(_LAYER.search, said.splitlines()) if m]
    layers = [layer for layer in layers if layer["kind"] not in ("InputOperator", "OutputOperator")]
    if done.returncode or not layers:
        wrong = [line for line in said.splitlines() if "Error" in line] or said.splitlines()[-1:]
        raise SystemExit(f"rknn-toolkit2: {(wrong or ['it said nothing'])[-1].strip()}")
    off = sorted({layer["kind"] for layer in layers if layer["at"] != "NPU"})
    inside = re.search(r"Total Internal Memory Size: ([\d.]+)KB", said)
    print(
        json.dumps(
            {
                "cycles": sum(int(layer["cycles"]) for layer in layers),
                "npu_operators": sum(layer["at"] == "NPU" for layer in layers),
                "cpu_operators": sum(layer["at"] != "NPU" for layer in layers),
                "on_cpu": " ".join(off),
                "moved_kib": sum(float(layer["kib"]) for layer in layers),
                "internal_kib": float(inside[1]) if inside else None,
            }
        )
    )


def compiled(path: str, chip: str) -> None:
    """Compile with its log on; the layers' table comes from its C library, on standard output."""
    from onnx import numpy_helper

    to_array = numpy_helper.to_array
    # It writes into weights that onnx gives for reading: its rule for pads before convolutions fails with them.
    numpy_helper.to_array = lambda *given, **named: to_array(*given, **named).copy()
    from rknn.api import RKNN

    rknn = RKNN(verbose=True)
    rknn.config(target_platform=chip)
    for code in (rknn.load_onnx(model=path), rknn.build(do_quantization=False)):
        if code:
            raise SystemExit(f"it ends with code {code}")
    rknn.release()


if __name__ == "__main__":
    if sys.argv[1] == "--compile":
        compiled(*sys.argv[2:4])
    else:
        main()
