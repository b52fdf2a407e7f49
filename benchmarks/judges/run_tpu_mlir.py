"""Compile an .onnx file with Sophgo's tpu-mlir; print what it says as JSON. Runs in the judge's own environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BIN = Path(sys.executable).parent


def main() -> None:
    """Arguments: the file; the chip and the type of numbers, such as ``bm1684x f16``; the image as CxHxW."""
    path = Path(sys.argv[1]).resolve()
    chip, kind = sys.argv[2].split()
    size = list(map(int, sys.argv[3].split("x")))
    with tempfile.TemporaryDirectory() as folder:
        read = ["--model_name", "net", "--model_def", str(path), "--input_shapes", json.dumps([[1, *size]])]
        run(folder, "model_transform", *read, "--mlir", "net.mlir")
        made = ["--mlir", "net.mlir", "--quantize", kind.upper(), "--chip", chip, "--model", "net.bmodel"]
        run(folder, "model_deploy", *made)
        profile = Path(folder, "compiler_profile_0.txt").read_text("utf-8", "replace")
        (final,) = Path(folder).glob("*_final.mlir")
        groups = len(re.findall(r'"tpu\.Group"', final.read_text("utf-8")))
    cycles = re.findall(r"API_END total_cycle:(\d+)", profile)
    if len(cycles) != 1:
        raise SystemExit(f"tpu-mlir says {len(cycles)} totals of cycles; expected one")
    moved = sum(int(n) for n in re.findall(r"\|dr:[01]\|sz:(\d+)\|", profile))
    print(json.dumps({"cycles": int(cycles[0]), "layer_groups": groups, "dram_bytes": moved}))


def run(folder: str, tool: str, *arguments: str) -> None:
    """Run one of its tools in a folder; its last words where it fails."""
    path = os.pathsep.join((str(BIN), os.environ["PATH"]))
    done = subprocess.run(
        [str(BIN / tool), *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise SystemExit(f"{tool}: {(said or ['no word'])[-1].strip()}")


if __name__ == "__main__":
    main()
