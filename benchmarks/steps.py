"""Steps against whole images in the same runtime, and against `stream` in torch: python benchmarks/steps.py [CASE ...]

Each figure is of a process of its own with one thread, in seconds of the image alone: it is run twice, and the second
run counts. `resident_bytes` is the growth of the kernel's high-water mark from before the file is opened: the
runtime's own memory and the weights are in it. Runs of one case alternate; ratios are of their medians. The allocator
keeps freed memory, for whole images gain by that.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results" / "speed" / "steps.json"
# name: (network, tile, rows of a step, height, width, pairs of runs; 0 runs the step alone, once)
CASES = {
    "mobilenetv3 4096": ("mobilenetv3_large_100", "1xW:running", 256, 4096, 1024, 2),
    "mobilenetv3 7xW 4096": ("mobilenetv3_large_100", "7xW", 224, 4096, 1024, 2),
    "mobilenetv3 20000": ("mobilenetv3_large_100", "1xW:running", 256, 20000, 1024, 1),
    "efficientnet_b0 4096": ("efficientnet_b0", "1xW:running", 256, 4096, 1024, 1),
    "regnety_008 4096": ("regnety_008", "1xW:running", 256, 4096, 1024, 1),
    "mobilenetv3 5000x256": ("mobilenetv3_large_100", "1xW:running", 256, 5000, 256, 0),
    "mobilenetv3 20000x256": ("mobilenetv3_large_100", "1xW:running", 256, 20000, 256, 0),
    "mobilenetv3 80000x256": ("mobilenetv3_large_100", "1xW:running", 256, 80000, 256, 0),
}
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def build(name: str, width: int):
    import timm
    import torch

    import tiledse as ts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, tile, *_ = CASES[name]
    model = timm.create_model(network).eval()
    return model, ts.find(model, (3, 224, width)).with_tile(tile)


def files(name: str, folder: Path, whole: bool) -> None:
    """The step, and the whole image's network with plain SE."""
    import torch

    import tiledse as ts

    _, _, rows, height, width, _ = CASES[name]
    model, plan = build(name, width)
    ts.export_step(model, plan, folder / "step.onnx", rows=rows, force=True)
    if whole:
        image = torch.zeros(1, 1, 1, 1).expand(1, 3, height, width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, (image,), dynamo=True, opset_version=18, verbose=False)
        program.save(folder / "whole.onnx", external_data=False)


def measure(name: str, how: str, folder: Path) -> dict[str, float]:
    """One run in this process."""
    import numpy as np

    from tiledse.stream.memory import peak_resident
    from tiledse.stream.step.runner import StepRunner

    _, _, rows, height, width, _ = CASES[name]
    backend, _, what = how.partition(" ")
    part = np.random.default_rng(0).random((1, 3, rows, width), np.float32)
    chunks = [min(rows, height - top) for top in range(0, height, rows)]
    if backend == "torch":
        import torch

        import tiledse as ts

        model, plan = build(name, width)
        stream = ts.stream(model, plan, height=height, width=width)
        call = lambda: [stream.push(torch.from_numpy(part[:, :, :n])) for n in chunks]  # noqa: E731
        gc.collect()
        with peak_resident() as grown:
            begin = time.perf_counter()
            call()
            stream.finish()
            seconds = time.perf_counter() - begin
        return {"seconds": seconds, "resident_bytes": grown()}
    if backend == "openvino":
        import openvino

        openvino.Core()
    else:
        import onnxruntime

        onnxruntime.get_available_providers()
    with peak_resident() as grown:
        if what == "step":
            runner = StepRunner(folder / "step.onnx", height, backend=backend, threads=1)
            for _ in range(2):  # the second time counts, as of the whole image
                begin = time.perf_counter()
                for count in chunks:
                    runner.push(part[:, :, :count])
                runner.finish()
        else:
            run = _open(folder / "whole.onnx", backend)
            image = np.concatenate([part[:, :, :n] for n in chunks], 2)
            run(image)
            begin = time.perf_counter()
            run(image)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "resident_bytes": grown()}


def _open(path: Path, backend: str):
    if backend == "openvino":
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": "1",
        }
        model = openvino.Core().compile_model(str(path), "CPU", options)
        return lambda image: model([image], share_inputs=True)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    return lambda image: session.run(None, {session.get_inputs()[0].name: image})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--backends", nargs="*", default=["onnxruntime", "openvino"])
    parser.add_argument("--folder", type=Path, help="Where the files lie, or go; made anew if left out.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(measure(args.cases[0], args.one, args.folder)))
        return
    record = json.loads(args.output.read_text()) if args.output.exists() else {}
    record["machine"] = {"python": platform.python_version(), "processor": platform.machine(), "threads": 1}
    for name in args.cases:
        folder = args.folder or Path(tempfile.mkdtemp())
        pairs = CASES[name][-1]
        if not (folder / "step.onnx").exists():
            files(name, folder, bool(pairs))
        kinds = [f"{b} {what}" for b in args.backends for what in (("step", "whole") if pairs else ("step",))]
        kinds += ["torch stream"] if pairs else []
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(max(1, pairs)):
            for kind in kinds:
                out = subprocess.run(
                    [sys.executable, __file__, name, "--one", kind, "--folder", str(folder)],
                    env={**os.environ, **KEPT, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
                ).stdout  # fmt: skip
                runs[kind].append(json.loads(out.splitlines()[-1]))
        medians = {k: statistics.median(r["seconds"] for r in found) for k, found in runs.items()}
        ratios = {
            f"{b} step / whole": medians[f"{b} step"] / medians[f"{b} whole"] for b in args.backends if pairs
        }
        if pairs:
            ratios |= {
                f"{b} step / torch stream": medians[f"{b} step"] / medians["torch stream"]
                for b in args.backends
            }
        record[name] = {"runs": runs, "ratios": ratios}
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        memory = {k: round(max(r["resident_bytes"] for r in found) / 1e6) for k, found in runs.items()}
        print(
            name,
            {k: round(v, 3) for k, v in medians.items()},
            memory,
            {k: round(v, 2) for k, v in ratios.items()},
            flush=True,
        )


if __name__ == "__main__":
    main()
