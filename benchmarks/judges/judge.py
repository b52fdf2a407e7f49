"""The judges: what each is given, and in which environment it speaks."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tiledse.errors import TiledSEError

from .environments import HERE, environment, last_line, surroundings

_HOUR = 3600


@dataclass(frozen=True)
class Judge:
    """A compiler or runtime of others.

    Attributes:
        name: Of its pins (NAME.txt) and its script (run_NAME.py).
        python: The version of Python that it runs on.
        target: The target whose form it is given; None for the form for ONNX Runtime.
        configurations: What it is asked for beside each form.
        forms: The forms that it is given where none are named.
        timed: Whether it runs the file beside SE's and takes times.
        endings: Files that it takes.
    """

    name: str
    python: str
    target: str | None
    configurations: tuple[str, ...]
    forms: tuple[str, ...]
    timed: bool = False
    endings: tuple[str, ...] = (".onnx",)


# "SE" is the network as it is; "HxW:two-step" is SE with its mean in two steps or in factors, as the target takes it.
_COMPILED = ("SE", "HxW:two-step", "7xW", "8xW", "divisors", "1xW:running+6")
_TIMED = ("SE", "HxW:two-step", "7xW", "8xW", "divisors", "7xW:running", "1xW:running+6")
_ONE = ("cpu, one thread",)
JUDGES = {
    judge.name: judge
    for judge in (
        Judge("vela", "3.11", "ethos-u", ("ethos-u55-256", "ethos-u65-256", "ethos-u85-256"), _COMPILED,
              endings=(".onnx", ".tflite")),
        Judge("tpu_mlir", "3.10", "sophgo", ("bm1684x f16",), _COMPILED),
        Judge("rknn", "3.10", "rockchip", ("rk3588 f16",), _COMPILED),
        Judge("openvino", "3.11", "openvino", _ONE, _TIMED, timed=True),
        Judge("ncnn", "3.11", "ncnn", _ONE, _TIMED, timed=True),
        Judge("mnn", "3.11", None, _ONE, _TIMED, timed=True),
        Judge("iree", "3.11", None, _ONE, _TIMED, timed=True),
        Judge("stream", "3.12", None, ("tpu_like_quad_core",), ("SE", "HxW:two-step", "7xW", "1xW:running+6")),
    )
}  # fmt: skip


def asked(judge: Judge, path: Path, plain: Path, configuration: str, size: str) -> dict[str, object]:
    """What a judge says of a file; its last words as ``error`` where it fails.

    Args:
        judge: The judge.
        path: The file.
        plain: The file of SE as it is, for times beside it.
        configuration: One of the judge's.
        size: CxHxW.
    """
    try:
        python = environment(judge.name, judge.python)
        if judge.name == "vela" and path.suffix == ".onnx":
            path = quantised(path)
    except TiledSEError as error:
        return {"error": str(error)}
    return spoken(
        python, f"run_{judge.name}.py", path, *((plain,) if judge.timed else ()), configuration, size
    )


def quantised(path: Path) -> Path:
    """An .onnx file as int8 .tflite, by onnx2tf, once.

    Raises:
        TiledSEError: onnx2tf fails, with its last words.
    """
    made = path.with_suffix(".tflite")
    if not made.exists():
        found = spoken(environment("onnx2tf", "3.11"), "run_onnx2tf.py", path, made)
        if "error" in found:
            raise TiledSEError(f"onnx2tf: {found['error']}")
    return made


def spoken(python: Path, script: str, *arguments: object) -> dict[str, object]:
    """Run a script of this folder in an environment, and read the JSON of its last line."""
    command = [str(python), "-W", "ignore", str(HERE / script), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_HOUR,
            env=surroundings(python.parents[1]),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": "it took more than an hour"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": last_line(done.stderr or done.stdout)}
    try:
        return dict(json.loads(lines[-1]))
    except ValueError:
        return {"error": f"its last line is no JSON: {lines[-1][:200]}"}
