"""Steps against whole images in the same runtime, and against `stream` in torch: python benchmarks/steps.py [CASE ...]

Times are of one process with one thread, in which the whole image and the steps take turns. Each image is a line: the
first two of a process are slower in ONNX Runtime, which plans its memory by the first one and takes it anew at the
second. Ratios are of the first images, and of the medians from the third on. `resident_bytes` is measured by itself, in
a process of its own: the growth of the kernel's high-water mark from before the file is opened, so that the runtime's
memory and the weights are in it. The allocator keeps freed memory, for whole images gain by that. `--prepare` makes the
files alone, so that the rest is short. Results go to results/speed/steps.csv; the lines of a case that is run again are
replaced.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results" / "speed" / "steps.csv"
COLUMNS = ("case", "network", "tile", "rows", "height", "width", "how", "image", "seconds", "resident_bytes")
# name: (network, tile, rows of a step, height, width, images of each in turn; 0 runs the step alone, once)
CASES = {
    "mobilenetv3 4096": ("mobilenetv3_large_100", "1xW:running", 192, 4096, 1024, 5),
    "mobilenetv3 4096 by 256": ("mobilenetv3_large_100", "1xW:running", 256, 4096, 1024, 5),
    "mobilenetv3 4096 by 448": ("mobilenetv3_large_100", "1xW:running", 448, 4096, 1024, 5),
    "mobilenetv3 7xW 4096": ("mobilenetv3_large_100", "7xW", 224, 4096, 1024, 5),
    "mobilenetv3 20000": ("mobilenetv3_large_100", "1xW:running", 192, 20000, 1024, 4),
    "efficientnet_b0 4096": ("efficientnet_b0", "1xW:running", 128, 4096, 1024, 4),
    "regnety_008 4096": ("regnety_008", "1xW:running", 128, 4096, 1024, 4),
    "ppocr 20000": ("ppocr", "1xW:running+8", 128, 20000, 640, 3),
    "lraspp 4096": ("torchvision:lraspp_mobilenet_v3_large", "1xW:running", 256, 4096, 1024, 1),
    "mobilenetv3 5000x256": ("mobilenetv3_large_100", "1xW:running", 256, 5000, 256, 0),
    "mobilenetv3 20000x256": ("mobilenetv3_large_100", "1xW:running", 256, 20000, 256, 0),
    "mobilenetv3 80000x256": ("mobilenetv3_large_100", "1xW:running", 256, 80000, 256, 0),
}
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def build(name: str, width: int):
    """The network and its plan."""
    import torch

    import tiledse as ts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, tile, *_ = CASES[name]
    if network == "ppocr":
        import rapidocr

        path = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_det_small.onnx"
        model = ts.open(path, (3, 320, width))
        return model, model.plan.with_tile(tile)
    if ":" in network:
        from tiledse.networks.loading import load

        model = load(network, input_size=(3, 224, width)).model.eval()
    else:
        import timm

        model = timm.create_model(network).eval()
    return model, ts.find(model, (3, 224, width)).with_tile(tile)


def files(name: str, folder: Path, whole: bool) -> None:
    """The step, and the whole image's network with plain SE."""
    import torch

    import tiledse as ts

    network, _, rows, height, width, _ = CASES[name]
    folder.mkdir(parents=True, exist_ok=True)
    model, plan = build(name, width)
    ts.export_step(model, plan, folder / "step.onnx", rows=rows, force=True)
    if network == "ppocr":
        ts.write(model, model.plan, folder / "whole.onnx")
    elif whole:
        image = torch.zeros(1, 1, 1, 1).expand(1, 3, height, width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, (image,), dynamo=True, opset_version=18, verbose=False)
        program.save(folder / "whole.onnx", external_data=False)


def take_turns(name: str, backend: str, folder: Path) -> dict[str, list[float]]:
    """Seconds of each image, whole and in steps, in this process."""
    import numpy as np

    from tiledse.stream.step.runner import StepRunner

    *_, height, width, images = CASES[name]
    runner = StepRunner(folder / "step.onnx", height, backend=backend, threads=1)
    rows = runner.header.rows
    part = np.random.default_rng(0).random((1, 3, rows, width), np.float32)
    chunks = [min(rows, height - top) for top in range(0, height, rows)]
    run, image = _open(folder / "whole.onnx", backend), np.concatenate([part[:, :, :n] for n in chunks], 2)

    def steps() -> None:
        for count in chunks:
            runner.push(part[:, :, :count])
        runner.finish()

    seconds: dict[str, list[float]] = {"whole": [], "step": []}
    for _ in range(images):
        for what, call in (("whole", lambda: run(image)), ("step", steps)):
            begin = time.perf_counter()
            call()
            seconds[what].append(time.perf_counter() - begin)
    return seconds


def measure(name: str, how: str, folder: Path) -> dict[str, float]:
    """One run in this process, for its memory."""
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
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--backends", nargs="*", default=["onnxruntime", "openvino"])
    parser.add_argument(
        "--folder", type=Path, default=Path("build/steps"), help="Where the files lie, or go."
    )
    parser.add_argument("--prepare", action="store_true", help="Make the files alone.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        act = take_turns if args.one in ("onnxruntime", "openvino") else measure
        print(json.dumps(act(args.cases[0], args.one, args.folder)))
        return
    for name in args.cases:
        folder = args.folder / name.replace(" ", "-")
        if not (folder / "step.onnx").exists():
            try:
                files(name, folder, bool(CASES[name][-1]))
            except Exception as error:  # a network that cannot run in steps is a line as well
                write(args.output, name, [{"how": f"refused: {str(error)[:150]}"}])
                print(name, error, flush=True)
                continue
        if not args.prepare:
            run_case(name, folder, args.backends, args.output)


def run_case(name: str, folder: Path, backends: list[str], output: Path) -> None:
    """One case."""
    images, rows, ratios = CASES[name][-1], [], {}
    for backend in backends:
        turns = call(name, backend, folder) if images else None
        for what, seconds in (turns or {}).items():
            rows += [
                {"how": f"{backend} {what}", "image": i + 1, "seconds": s} for i, s in enumerate(seconds)
            ]
        if turns:
            later = {what: statistics.median(s[2:] or s) for what, s in turns.items()}
            ratios[f"{backend}, first images"] = round(turns["step"][0] / turns["whole"][0], 2)
            ratios[f"{backend}, later"] = round(later["step"] / later["whole"], 2)
        for what in ("step", "whole") if images else ("step",):
            rows.append({"how": f"{backend} {what}", **(call(name, f"{backend} {what}", folder) or {})})
    if images and CASES[name][0] != "ppocr":
        rows.append({"how": "torch stream", **(call(name, "torch stream", folder) or {})})
    write(output, name, rows)
    memory = {row["how"]: round(row["resident_bytes"] / 1e6) for row in rows if "resident_bytes" in row}
    print(name, ratios, memory, flush=True)


def call(name: str, what: str, folder: Path):
    """One run in a process of its own; None, with a line that says why, where it fails."""
    made = subprocess.run(
        [sys.executable, __file__, name, "--one", what, "--folder", str(folder)],
        env={**os.environ, **KEPT, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        print(name, what, (made.stderr.splitlines() or ["ended without a word"])[-1], flush=True)
        return None
    return json.loads(made.stdout.splitlines()[-1])


def write(path: Path, name: str, rows: list[dict[str, object]]) -> None:
    """Put the lines of a case in the place of those that are there."""
    kept: list[dict[str, object]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["case"] != name]
    network, tile, count, height, width, _ = CASES[name]
    about = {"case": name, "network": network, "tile": tile, "rows": count, "height": height, "width": width}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *({**about, **row} for row in rows)])


if __name__ == "__main__":
    main()
