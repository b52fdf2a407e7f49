"""What people get who export a converted module for phones: operators of litert-torch's and executorch's files.

    python -m benchmarks.judges.exported_mobile litert_torch --network timm:tf_mobilenetv3_small_100 --input 3x224x224

The module is converted by ``tiledse.convert`` and exported by the tool, which is installed beside our own PyTorch, in
an environment of its own and without what it asks for. The result is run and compared with the module. Rows go to
results/judges/exported_mobile.csv.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import tempfile
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


def litert_torch(module: torch.nn.Module, x: torch.Tensor) -> tuple[Counter[str], np.ndarray, int]:
    """Operators of a .tflite file, what it gives, and how many are left to the CPU's own kernels: not known, -1."""
    from ai_edge_litert.interpreter import Interpreter

    made = importlib.import_module("litert_torch").convert(module, (x,))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.tflite"
        made.export(str(path))
        details = Interpreter(str(path))._get_ops_details()
    kinds = Counter(op["op_name"] for op in details if op["op_name"] != "DELEGATE")
    return kinds, np.asarray(made(x)), -1


def executorch(module: torch.nn.Module, x: torch.Tensor) -> tuple[Counter[str], np.ndarray, int]:
    """Operators of the edge graph, what the program gives, and how many XNNPACK does not take."""
    exir = importlib.import_module("executorch.exir")
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    runtime = importlib.import_module("executorch.runtime")

    def calls(program: Any) -> list[str]:
        nodes = program.exported_program().graph.nodes
        named = [re.search(r"(\w+)\.\w+(?:>|$)", str(n.target)) for n in nodes if n.op == "call_function"]
        return [found[1] for found in named if found]

    edge = exir.to_edge(torch.export.export(module, (x,)))
    lowered = exir.to_edge_transform_and_lower(
        torch.export.export(module, (x,)), partitioner=[xnnpack.XnnpackPartitioner()]
    )
    program = runtime.Runtime.get().load_program(lowered.to_executorch().buffer)
    got = program.load_method("forward").execute([x])[0].numpy()
    return Counter(calls(edge)), got, len([name for name in calls(lowered) if "delegate" not in name])


WAYS = {"litert_torch": litert_torch, "executorch": executorch}
_TRANSPOSES = ("TRANSPOSE", "permute_copy", "transpose_copy")


def measured(way: str, name: str, net: ts.Network) -> None:
    """Export every form that has no row yet."""
    table, said = Table(RESULTS / "exported_mobile.csv"), version(way)
    size = "x".join(map(str, net.plan.input_size))
    x = torch.from_numpy(
        np.random.default_rng(0).standard_normal((1, *net.plan.input_size)).astype(np.float32)
    )
    for form in FORMS:
        key = (name, size, form, way)
        if table.there(key, said):
            continue
        module = net.convert(net.se.with_tile(form)).given.eval()
        expected = module(x).detach().numpy()
        try:
            kinds, got, left = WAYS[way](module, x)
        except Exception as error:
            found: dict[str, object] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        else:
            found = {
                "operators": sum(kinds.values()),
                "transposes": sum(kinds[kind] for kind in _TRANSPOSES),
                "not_delegated": "" if left < 0 else left,
                "max_rel_error": float(f"{np.abs(got - expected).max() / np.abs(expected).max():.2g}"),
                "kinds": " ".join(f"{kind}:{n}" for kind, n in sorted(kinds.items())),
            }
        table.add(key, found, said)
        print(*key, found, flush=True)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges.exported_mobile")
    parser.add_argument("way", choices=sorted(WAYS))
    parser.add_argument("--network", required=True, help="a MODEL of PyTorch")
    parser.add_argument("--weights")
    parser.add_argument("--input", required=True, help="CxHxW")
    given = parser.parse_args()
    torch.manual_seed(0)
    with one_line():
        net = module_of(given.network, given.input, given.weights)
        own = environment(given.way, f"{sys.version_info[0]}.{sys.version_info[1]}")
        sys.path += [str(path) for path in own.parents[1].glob("lib/python*/site-packages")]
        measured(given.way, given.network, net)


if __name__ == "__main__":
    main()
