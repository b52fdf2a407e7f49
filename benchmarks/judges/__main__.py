"""``make judges``: write the forms of a network, hand each to a judge, keep what it says in results/judges/*.csv.

Each judge has an environment of its own with the versions of NAME.txt beside this file. A row that is there is not
judged again, so a run that was broken off goes on. Where a judge fails, the row says why and the rest goes on. Figures
are those of the judge: its own model of cycles, or time on this machine.

    python -m benchmarks.judges tpu_mlir --network regnety-800mf-448
    python -m benchmarks.judges vela --network net_int8.tflite
    python -m benchmarks.judges openvino --network timm:tf_mobilenetv3_small_100 --input 3x224x224
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

import tiledse as ts
from tiledse.errors import TiledSEError
from tiledse.numerals import whole

from .environments import ROOT, environment, version
from .judge import JUDGES, Judge, asked
from .networks import NETWORKS, opened
from .table import Table

RESULTS = ROOT / "results" / "judges"
# Forms of a .tflite file, which is written for no target.
_TFLITE = ("HxW", "7xW", "8xW", "7xW:running", "1xW:running+6")
# SE as it is; tiles of about 7 rows that divide their maps.
_NO_TILES = ("SE", "divisors")


def judged(judge: Judge, name: str, network: ts.Network, forms: tuple[str, ...], again: bool) -> int:
    """Judge each form of a network that has no row yet; how many rows say that it failed."""
    table, said, failed = Table(RESULTS / f"{judge.name}.csv"), version(judge.name), 0
    size = "x".join(map(str, network.plan.input_size))
    with tempfile.TemporaryDirectory() as folder:
        ending = ".tflite" if network.file_ending == ".tflite" else ".onnx"
        plain = Path(folder) / f"plain{ending}"
        for form in forms:
            for configuration in judge.configurations:
                key = (name, size, form, configuration)
                if table.there(key, said, again):
                    continue
                try:
                    if judge.timed:
                        written(network, "SE", plain, None)
                    path = Path(folder) / f"{form.replace(':', '-')}{ending}"
                    written(network, form, path, judge.target)
                    found = asked(judge, path, plain, configuration, size)
                except TiledSEError as error:
                    found = {"error": f"tiledse writes no such form: {error}"}
                failed += "error" in found
                table.add(key, found, said)
                print(" ".join(key), found, flush=True)
    return failed


def written(network: ts.Network, form: str, path: Path, target: str | None) -> None:
    """Write a form at a fixed batch of one, where it is not there.

    Args:
        network: The network.
        form: A tile; ``SE`` for the network as it is, ``divisors`` for tiles of about 7 rows that divide their maps.
        path: The file.
        target: The target that it is for; None for ONNX Runtime.
    """
    if path.exists():
        return
    onnx, plan = path.suffix == ".onnx", network.se
    if form not in _NO_TILES:
        plan = plan.with_tile(form)
    if form == "divisors":
        plan = plan.with_tile("7xW")
    goal = None if target is None else ts.targets.load(target)
    if goal is not None and form == "SE":  # as it is, in the file format that the target takes
        goal = ts.targets.Target(
            goal.name, static=True, batch=1, opset=goal.opset, ir_version=goal.ir_version
        )
    how = ts.Form(batch=1, divisor_tiles=form == "divisors", target=goal) if onnx else ts.Form()
    ts.write(network, plan, path, how)


def main() -> None:
    """Read the command line and judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges", description=__doc__.splitlines()[0])
    parser.add_argument("judge", choices=sorted(JUDGES))
    parser.add_argument(
        "--network", required=True, action="append",
        help=f"{', '.join(NETWORKS)}; or MODEL (vela takes int8 FILE.tflite too)",
    )  # fmt: skip
    parser.add_argument("--weights")
    parser.add_argument("--input", help="CxHxW")
    parser.add_argument("--forms", nargs="+")
    parser.add_argument("--again", action="store_true", help="judge rows once more that say why they failed")
    given = parser.parse_args()
    judge, failed = JUDGES[given.judge], 0
    with one_line():
        size = None if given.input is None else sized(given.input)
        asked_for = []
        for network in given.network:
            name, net = opened(network, size, given.weights)
            ending = net.file_ending if net.file_ending == ".tflite" else ".onnx"
            if ending not in judge.endings:
                raise TiledSEError(
                    f"{judge.name} takes files that end in {', '.join(judge.endings)}, got {network}"
                )
            forms = tuple(given.forms or (_TFLITE if ending == ".tflite" else judge.forms))
            check_forms(net, forms)
            asked_for.append((name, net, forms))
        environment(judge.name, judge.python)
        for name, net, forms in asked_for:
            failed += judged(judge, name, net, forms, given.again)
    if failed:
        print(f"judges: {failed} forms failed; their rows say why", file=sys.stderr)


def check_forms(network: ts.Network, forms: tuple[str, ...]) -> None:
    """Check that each form is a tile that the blocks of a network take, or one of the two that are none.

    Raises:
        TiledSEError: one is not.
    """
    for form in forms:
        if form == "divisors" and network.file_ending == ".tflite":
            raise TiledSEError("'divisors' is a form of .onnx files; expected SE or tiles for a .tflite file")
        if form in _NO_TILES:
            continue
        try:
            network.se.with_tile(form)
        except TiledSEError as error:
            raise TiledSEError(
                f"expected each of --forms to be {', '.join(_NO_TILES)} or a tile, got '{form}': {error}"
            ) from None


def module_of(model: str, size: str, weights: str | None = None) -> ts.Network:
    """A network of PyTorch, for scripts that export modules.

    Raises:
        TiledSEError: no such network, or one that is a file, or an input of another form.
    """
    network = ts.open(model, sized(size), weights=weights)
    if not isinstance(network.given, nn.Module):
        raise TiledSEError(f"expected a MODEL of PyTorch to export, such as timm:NAME, got {model}")
    return network


@contextmanager
def one_line() -> Iterator[None]:
    """What is within fails with one line and exit code 2, as the commands do."""
    try:
        yield
    except TiledSEError as error:
        print(f"judges: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def sized(text: str) -> tuple[int, int, int]:
    """(C, H, W) of CxHxW.

    Raises:
        TiledSEError: another number of sides, or one that is no whole number above 0.
    """
    parts = text.split("x")
    try:
        if len(parts) != 3:
            raise ValueError("expected three sides")
        c, h, w = (whole(int(part), "a side") for part in parts)
    except ValueError as error:
        raise TiledSEError(f"expected --input CxHxW, such as 3x224x224, got '{text}': {error}") from None
    return c, h, w


if __name__ == "__main__":
    main()
