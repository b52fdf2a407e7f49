"""Memory and time of streaming against the whole image: python benchmarks/streaming.py [CASE ...] [--output FILE]

Each run is a process of its own with one thread. `resident_bytes` is the growth of the kernel's high-water mark over
the loaded network, after one small image has gone through it and, where it streams, after tracing; the tracer's own
modules, which are loaded once, are `tracing_bytes`. Streamed and whole runs alternate; times are of the image alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

RESULTS = Path(__file__).parent.parent / "results" / "speed" / "streaming.json"
NETWORK = "mobilenetv3_large_100"
# name: (height, width, rows at a time, pairs of streamed and whole runs; 0 pairs: one streamed run and no whole one)
CASES = {
    "20000x1024": (20000, 1024, 64, 2),
    "4096x2048": (4096, 2048, 64, 2),
    "4096x1024": (4096, 1024, 64, 3),
    "5000x256": (5000, 256, 64, 0),
    "20000x256": (20000, 256, 64, 0),
    "80000x256": (80000, 256, 64, 0),
    "disk 20000x1024": (20000, 1024, 64, 0),
}
# glibc keeps freed memory instead of giving it back to the kernel, so that large tensors cost no page faults.
ALLOCATORS = {
    "default": {},
    "retaining": {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"},
}


def measure(name: str, how: str) -> dict[str, float]:
    """One run in this process."""
    import timm

    import tiledse as ts
    from tiledse.stream.memory import peak_resident
    from tiledse.stream.sources import ImageRows, write_rows

    height, width, rows, _ = CASES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = name.startswith("disk")
    options = {"num_classes": 0, "global_pool": ""} if dense else {}
    model = timm.create_model(NETWORK, **options).eval()
    plan = ts.find(model, (3, 224, 224)).with_tile("7xW")
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    result: dict[str, float] = {}
    with peak_resident() as traced:
        stream = ts.stream(model, plan, height=height, width=width, rows=rows) if how == "stream" else None
    result["tracing_bytes"] = traced()
    tse = None if stream is not None else ts.convert(model, plan)
    folder = Path(tempfile.mkdtemp())
    if dense:
        _write_tiff(folder / "image.tif", height, width)

    def chunks():
        for start in range(0, height, rows):
            yield torch.rand(1, 3, min(rows, height - start), width)

    gc.collect()
    with peak_resident() as grown:
        begin, cpu = time.perf_counter(), time.process_time()
        if stream is None:
            with torch.no_grad():
                tse(torch.cat(list(chunks()), 2))
        elif dense:
            value = stream.graph.values[stream.graph.outputs[0]]
            image = ImageRows(folder / "image.tif")
            write_rows(folder / "out.npy", value.shape, 2, stream.run(image.chunks(rows)))
        else:
            for _ in stream.run(chunks()):
                pass
        result["seconds"], result["cpu_seconds"] = time.perf_counter() - begin, time.process_time() - cpu
    result["resident_bytes"] = grown()
    if stream is not None:
        result["peak_live_bytes"] = stream.peak_live_bytes
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return result


def _write_tiff(path: Path, height: int, width: int) -> None:
    import numpy as np
    import tifffile

    generator = np.random.default_rng(0)
    bands = (generator.integers(0, 256, (64, width, 3), np.uint8) for _ in range(0, height, 64))
    options = {"dtype": np.uint8, "photometric": "rgb", "compression": "zlib"}
    tifffile.imwrite(path, bands, shape=(height, width, 3), tile=(64, width), **options)


def run(name: str, how: str, allocator: str) -> dict[str, object]:
    """One run in a process of its own."""
    environment = {**os.environ, **ALLOCATORS[allocator], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name, how]
    line = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return {"case": name, "how": how, "allocator": allocator, **json.loads(line.splitlines()[-1])}


def machine() -> dict[str, object]:
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": 1, "torch": torch.__version__,
        "python": platform.python_version(), "load_average": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases", nargs="*", default=[], metavar="CASE", help=f"of {', '.join(CASES)}; all if left out"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--allocator", choices=ALLOCATORS, default="default")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(*arguments.one)))
        return
    unknown = [case for case in arguments.cases if case not in CASES]
    if unknown:
        parser.error(f"no case '{unknown[0]}'; expected some of {', '.join(CASES)}")
    record = (
        json.loads(arguments.output.read_text())
        if arguments.output.exists()
        else {"network": NETWORK, "runs": []}
    )
    for name in arguments.cases or CASES:
        pairs = CASES[name][3]
        for how in ["stream", "whole"] * pairs or ["stream"]:
            done = run(name, how, arguments.allocator)
            record["runs"].append({**done, "machine": machine()})
            arguments.output.write_text(json.dumps(record, indent=1))
            print({key: value for key, value in record["runs"][-1].items() if key != "machine"}, flush=True)


if __name__ == "__main__":
    main()
