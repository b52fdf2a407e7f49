"""Try a file from strangers in a process of its own: what crashes there crashes nothing here."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ..documents import read_json, write_json
from ..errors import TiledSEError, first_line
from .model import TfliteModel

# Seconds that a file may take for one image of zeros.
_LONGEST_S = 300
_CODE = """
import sys
from json import dumps, loads
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
path, sizes = sys.argv[1], loads(sys.argv[2])
def run(resolver):
    interpreter = Interpreter(path, num_threads=1, experimental_op_resolver_type=resolver)
    for index, shape in sizes:
        interpreter.resize_tensor_input(index, shape)
    interpreter.allocate_tensors()
    for given in interpreter.get_input_details():
        interpreter.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
    interpreter.invoke()
    return {t["index"]: list(map(int, t["shape"])) for t in interpreter.get_tensor_details()}
try:
    try:
        found = run(OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    except RuntimeError:
        found = run(OpResolverType.AUTO)
    print(dumps({"shapes": found}))
except Exception as error:
    print(dumps({"error": str(error)}))
"""
_tried: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {}


def tried(model: TfliteModel, sizes: dict[int, tuple[int, ...]]) -> TfliteModel:
    """A network that the interpreter has run on zeros in another process, with the shape of each tensor.

    Args:
        model: The network.
        sizes: Shapes of inputs, by tensor, where they are not those of the file.

    Raises:
        TiledSEError: the interpreter does not run it, or crashes.
    """
    wanted = write_json([[index, shape] for index, shape in sizes.items()])
    key = model.digest, wanted
    if key not in _tried:
        _tried[key] = _shapes(model, wanted)
    return replace(model, shapes=_tried[key], tried=True)


def _shapes(model: TfliteModel, wanted: str) -> tuple[tuple[int, ...], ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(model.data)
        given = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CODE, str(path), wanted], capture_output=True, text=True, env=given,
                timeout=_LONGEST_S, cwd=folder,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TiledSEError(
                f"{model.name} takes more than {_LONGEST_S} s for one image; give a smaller network"
            ) from error
    try:
        said = read_json(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise TiledSEError(
            f"LiteRT crashes on {model.name} (exit {done.returncode}); mend the file or convert it again"
        ) from None
    if "error" in said:
        raise TiledSEError(f"LiteRT does not run {model.name}: {reason(said['error'])}")
    shapes = {int(index): tuple(shape) for index, shape in said["shapes"].items()}
    count = len(model.tree.subgraphs[0].tensors)
    return tuple(shapes.get(index, ()) for index in range(count))


def reason(error: object) -> str:
    """What the interpreter said, in one line."""
    text = str(error)
    custom = "unresolved custom op: "
    if custom in text:
        name = text.partition(custom)[2].split()[0].rstrip(".")
        return f"it has the custom operator {name}, which only its own runtime has"
    return first_line(Exception(text), 160)
