"""What people get who export a converted module themselves: operators, and OpenVINO's time, beside convert's file.

    python -m benchmarks.judges.exported --network timm:mobilenetv3_large_100 --input 3x4096x1024

The module is converted by ``tiledse.convert`` and then given to ``openvino.convert_model`` and to both exporters of
``torch.onnx``. OpenVINO is that of its judge's environment. Rows go to results/judges/exported.csv.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiledse as ts

from .__main__ import RESULTS, module_of, one_line
from .environments import environment, version
from .table import Table

FORMS = ("HxW", "7xW", "1xW:running+6")
_ROUNDS = 8
_ONE = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


def routes(
    module: torch.nn.Module, x: torch.Tensor, net: ts.Network, plan: ts.Plan, folder: Path
) -> dict[str, Any]:
    """What OpenVINO is given, by the way that it came."""
    import openvino as ov

    files = {name: folder / f"{name}.onnx" for name in ("convert", "script", "dynamo")}
    ts.write(net, plan, files["convert"], ts.Form(batch=1))
    torch.onnx.export(module, (x,), files["script"], dynamo=False, opset_version=17)
    torch.onnx.export(module, (x,), files["dynamo"], dynamo=True, verbose=False)
    core = ov.Core()
    return {
        "tiledse convert": core.read_model(files["convert"]),
        "openvino.convert_model": ov.convert_model(module, example_input=x, input=list(x.shape)),
        "torch.onnx.export, dynamo=False": core.read_model(files["script"]),
        "torch.onnx.export": core.read_model(files["dynamo"]),
    }


def operators(model: Any) -> dict[str, object]:
    """Counts of a network's operators, constants left out, and the most axes of a value."""
    kinds = Counter(op.get_type_name() for op in model.get_ops())
    ranks = [
        op.get_output_partial_shape(0).rank.get_length() for op in model.get_ops() if op.get_output_size()
    ]
    return {
        "operators": sum(n for kind, n in kinds.items() if kind not in ("Constant", "Parameter", "Result")),
        "transposes": kinds["Transpose"],
        "reshapes": kinds["Reshape"],
        "cumsums": kinds["CumSum"],
        "axes": max(ranks),
    }


def measured(name: str, net: ts.Network) -> None:
    """Judge every form by every way."""
    import openvino as ov

    table, said, core = Table(RESULTS / "exported.csv"), version("openvino"), ov.Core()
    size = "x".join(map(str, net.plan.input_size))
    x = torch.from_numpy(
        np.random.default_rng(0).standard_normal((1, *net.plan.input_size)).astype(np.float32)
    )
    compiled: dict[tuple[str, str], Any] = {}
    counts: dict[tuple[str, str], dict[str, object]] = {}
    for form in FORMS:
        plan = net.se.with_tile(form)
        module = net.convert(plan).given
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            expected = module(x).numpy()
            for way, model in routes(module, x, net, plan, Path(folder)).items():
                model.reshape([1, *net.plan.input_size])
                counts[form, way] = operators(model)
                compiled[form, way] = core.compile_model(model, "CPU", _ONE)
                far = np.abs(compiled[form, way](x.numpy())[0] - expected).max() / np.abs(expected).max()
                counts[form, way]["max_rel_error"] = float(f"{far:.2g}")
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in compiled}
    for _ in range(_ROUNDS):  # in turns, so that all meet the same neighbours on the machine
        for key, network in compiled.items():
            start = time.perf_counter()
            network(x.numpy())
            taken[key].append(time.perf_counter() - start)
    se = min(taken["HxW", "tiledse convert"])
    for (form, way), times in taken.items():
        found = counts[form, way] | {"seconds": round(min(times), 6), "of_se": round(min(times) / se, 3)}
        table.add((name, size, form, way), found, said)
        print(form, way, found, flush=True)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges.exported")
    parser.add_argument("--network", required=True, help="a MODEL of PyTorch")
    parser.add_argument("--input", required=True, help="CxHxW")
    given = parser.parse_args()
    torch.manual_seed(0)
    with one_line():
        net = module_of(given.network, given.input)
        own = environment("openvino", f"{sys.version_info[0]}.{sys.version_info[1]}")
        sys.path += [str(path) for path in own.parents[1].glob("lib/python*/site-packages")]
        measured(given.network, net)


if __name__ == "__main__":
    main()
