"""Compile a .tflite file with Arm's Vela; print what it says as JSON. Runs in the judge's own environment."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Arguments: the file and the accelerator."""
    path, accelerator = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        vela = Path(sys.executable).with_name("vela")
        command = [str(vela), path, "--accelerator-config", accelerator, "--output-dir", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode:
            raise SystemExit(said.strip().splitlines()[-1])
        (table,) = Path(folder).glob("*_summary_*.csv")
        with table.open() as file:
            row = next(csv.DictReader(file))

    def operators(kind: str) -> int:
        found = re.search(rf"{kind} operators = (\d+)", said)
        return int(found[1]) if found else 0

    refused = sorted(set(re.findall(r"\(supported operators\) operator: (\w+)", said)))
    print(
        json.dumps(
            {
                "cycles": int(float(row["cycles_total"])),
                "npu_operators": operators("NPU"),
                "cpu_operators": operators("CPU"),
                "on_cpu": " ".join(refused),
                "sram_kib": float(row["sram_memory_used"]),
                "dram_bytes": int(float(row["dram_total_bytes"])),
            }
        )
    )


if __name__ == "__main__":
    main()
