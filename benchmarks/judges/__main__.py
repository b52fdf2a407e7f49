"""``make judges``: write the forms of a network, hand each to a judge, keep what it says in results/judges/*.csv.

Each judge has an environment of its own with the versions of NAME.txt beside this file. A row that is there is not
judged again, so a run that was broken off goes on. Figures are those of the judge: its own model of cycles, or time
on this machine.

    python -m benchmarks.judges vela --network net_int8.tflite
    python -m benchmarks.judges openvino --network timm:tf_mobilenetv3_small_100 --input 3x224x224
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tiledse as ts
from tiledse.errors import TiledSEError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "results" / "judges"
ENVIRONMENTS = ROOT / ".venv-judges"
FORMS = ("HxW", "7xW", "8xW", "7xW:running", "1xW:running+6")
# How files for a judge end, and what it is asked for beside each form.
JUDGES = {
    "vela": (".tflite", ("ethos-u55-256", "ethos-u65-256", "ethos-u85-256")),
    "openvino": (".onnx", ("cpu, one thread",)),
}


def environment(judge: str) -> Path:
    """The Python of a judge's own environment, made where it is not there."""
    folder = ENVIRONMENTS / judge
    python, ready = folder / "bin" / "python", folder / "ready"
    pins = (HERE / f"{judge}.txt").read_text("utf-8")
    if not ready.exists() or ready.read_text("utf-8") != pins:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / f"{judge}.txt")], check=True
        )
        ready.write_text(pins, "utf-8")
    return python


def judged(judge: str, network: ts.Network, folder: Path, forms: tuple[str, ...]) -> None:
    """Judge each form of a network that has no row yet."""
    ending, configurations = JUDGES[judge]
    table = RESULTS / f"{judge}.csv"
    rows = list(csv.DictReader(table.open(newline=""))) if table.exists() else []
    there = {(row["network"], row["input"], row["form"], row["configuration"]) for row in rows}
    size = "x".join(map(str, network.plan.input_size))
    python = environment(judge)
    plain = written(network, "HxW", folder, ending)
    for form in forms:
        path = written(network, form, folder, ending)
        for configuration in configurations:
            key = (network.name, size, form, configuration)
            if key in there:
                continue
            second = configuration if judge == "vela" else str(plain)
            done = subprocess.run(
                [str(python), str(HERE / f"run_{judge}.py"), str(path), second], capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode:
                print(f"{' '.join(key)}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            version = (HERE / f"{judge}.txt").read_text("utf-8").split()[0]
            row = dict(zip(("network", "input", "form", "configuration"), key)) | found | {"judge": version}
            rows.append(row)
            RESULTS.mkdir(parents=True, exist_ok=True)
            with table.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
                writer.writerows(rows)
            print(row, flush=True)


def written(network: ts.Network, form: str, folder: Path, ending: str) -> Path:
    """The file of a form, at a fixed batch of one."""
    path = folder / f"{form.replace(':', '-')}{ending}"
    if not path.exists():
        how = ts.Form(batch=1) if ending == ".onnx" else ts.Form()
        ts.write(network, network.se.with_tile(form), path, how)
    return path


def main() -> None:
    """Read the command line and judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judges", description=__doc__.splitlines()[0])
    parser.add_argument("judge", choices=sorted(JUDGES))
    parser.add_argument(
        "--network", required=True, action="append", help="MODEL; vela takes int8 FILE.tflite"
    )
    parser.add_argument("--weights")
    parser.add_argument("--input", help="CxHxW")
    parser.add_argument("--forms", nargs="+", default=FORMS)
    given = parser.parse_args()
    size = None if given.input is None else tuple(map(int, given.input.split("x")))
    try:
        for name in given.network:
            network = ts.open(name, size, weights=given.weights)
            if JUDGES[given.judge][0] == ".tflite" and network.file_ending != ".tflite":
                raise TiledSEError(f"{given.judge} takes FILE.tflite, got {name}")
            with tempfile.TemporaryDirectory() as folder:
                judged(given.judge, network, Path(folder), tuple(given.forms))
    except TiledSEError as error:
        raise SystemExit(f"judges: {error}") from None


if __name__ == "__main__":
    main()
