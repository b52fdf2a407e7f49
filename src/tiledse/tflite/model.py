"""TfliteModel: a TensorFlow Lite file in memory; read with every check, written whole or not at all."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TiledSEError
from ..files import written_whole
from .nodes import LEAST, OPTIONS
from .schema import BadFile, names, pack, parse

# Types of tensors whose buffers are read, and how numpy calls them; others are left as they lie.
DTYPES = {
    "FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "UINT8": np.uint8, "INT64": np.int64,
    "INT16": np.int16, "INT8": np.int8, "FLOAT64": np.float64, "BOOL": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TfliteModel:
    """A TensorFlow Lite network.

    Args:
        tree: The file, as the schema package holds it (``ModelT``).
        path: The file that it came from; None where it was made here.
        image: Which input takes the image; needed where several could.
        shapes: The shape of each tensor at the size that is looked at, where the file leaves some open.
        tried: Whether the interpreter has run it, or what it was made from.
    """

    tree: Any
    path: Path | None = None
    image: str | None = None
    shapes: tuple[tuple[int, ...], ...] | None = None
    tried: bool = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path) if self.path is not None else "the TensorFlow Lite network"

    @cached_property
    def data(self) -> bytes:
        """The file."""
        return pack(self.tree)

    @cached_property
    def digest(self) -> str:
        """A name for the file's content."""
        return hashlib.sha256(self.data).hexdigest()

    def clone(self) -> TfliteModel:
        """Another graph whose weights are shared with this one."""
        tree = copy.copy(self.tree)
        tree.operatorCodes = list(tree.operatorCodes)
        tree.buffers, tree.metadata = list(tree.buffers), list(tree.metadata or [])
        first = copy.copy(tree.subgraphs[0])
        first.tensors = [copy.copy(tensor) for tensor in first.tensors]
        first.operators = [copy.copy(op) for op in first.operators]
        for op in first.operators:
            op.inputs = list(map(int, op.inputs if op.inputs is not None else ()))
        tree.subgraphs = [first, *tree.subgraphs[1:]]
        return replace(self, tree=tree)


def load(path: str | Path, image: str | None = None) -> TfliteModel:
    """Read a TensorFlow Lite file and check it.

    Args:
        path: The file.
        image: Which input takes the image, where several could.

    Raises:
        TiledSEError: the file is missing, is none, was cut off, contradicts itself, or keeps its weights elsewhere;
            or the package that reads it is not installed.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise TiledSEError(f"cannot read {path}: it is a folder; give a .tflite file")
        data = path.read_bytes()
    except OSError as error:
        raise TiledSEError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        tree = parse(data)
        check(tree)
    except BadFile as error:
        raise TiledSEError(
            f"{path} is no TensorFlow Lite file, or it was cut off: {error}; get the file again"
        ) from error
    return TfliteModel(tree, path, image)


def save(model: TfliteModel, path: str | Path, *, force: bool = False) -> None:
    """Write a TensorFlow Lite file, whole or not at all.

    Raises:
        TiledSEError: the path exists and ``force`` is not given, or the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir() and not force:
        raise TiledSEError(f"{path} exists; give another name, or --force to replace it")
    with written_whole(path) as part:
        part.write_bytes(model.data)


def check(tree: Any) -> None:
    """Check that what a file says of itself holds together.

    Raises:
        BadFile: an index leads nowhere, a constant has other than its shape's size, or operators are out of order.
    """
    if tree.version != 3:
        raise BadFile(f"version {tree.version} of the format, where 3 is read")
    if not tree.subgraphs or not tree.buffers or not tree.operatorCodes:
        raise BadFile("it holds no graph")
    for buffer in tree.buffers:
        if buffer.offset > 1 or buffer.size > 1:
            raise BadFile("its weights lie behind the graph (a file of more than 2 GB), which is not read")
    for graph in tree.subgraphs:
        _fill(graph)
        _check_graph(graph, tree)


def _fill(graph: Any) -> None:
    """Empty lists where a file has none."""
    for name in ("tensors", "operators", "inputs", "outputs"):
        if getattr(graph, name) is None:
            setattr(graph, name, [])
    for op in graph.operators:
        op.inputs = [] if op.inputs is None else op.inputs
        op.outputs = [] if op.outputs is None else op.outputs


def _check_graph(graph: Any, tree: Any) -> None:
    count = len(graph.tensors or ())
    for tensor in graph.tensors or ():
        _check_tensor(tensor, tree)
    made = {int(i) for i in graph.inputs} if graph.inputs is not None else set()
    _inside(made, count, "an input")
    produced = {int(i) for op in graph.operators or () for i in _list(op.outputs)}
    for op in graph.operators or ():
        if not 0 <= op.opcodeIndex < len(tree.operatorCodes):
            raise BadFile(f"an operator has code {op.opcodeIndex} of {len(tree.operatorCodes)}")
        inputs, outputs = _list(op.inputs), _list(op.outputs)
        _check_operator(tree.operatorCodes[op.opcodeIndex], op, len(inputs), len(outputs))
        _inside({i for i in inputs if i != -1}, count, "an operator's input")
        _inside(set(outputs), count, "an operator's output")
        if any(i in produced and i not in made for i in inputs):
            raise BadFile("an operator takes what a later one gives")
        if made & set(outputs):
            raise BadFile("two operators give the same tensor")
        made.update(outputs)
    _inside(set(_list(graph.outputs)), count, "an output")


def _check_operator(code: Any, op: Any, inputs: int, outputs: int) -> None:
    """Check an operator that is looked into: how many tensors it has, and that its options are its own."""
    kind = names("BuiltinOperator").get(max(code.builtinCode, code.deprecatedBuiltinCode), "")
    if kind not in LEAST:
        return
    if inputs < LEAST[kind] or outputs != 1:
        raise BadFile(f"{kind} has {inputs} inputs and {outputs} outputs")
    if kind in OPTIONS and type(op.builtinOptions).__name__ not in (OPTIONS[kind], "NoneType"):
        raise BadFile(f"{kind} has the options of another operator")


def _check_tensor(tensor: Any, tree: Any) -> None:
    if not 0 <= tensor.buffer < len(tree.buffers):
        raise BadFile(f"a tensor lies in buffer {tensor.buffer} of {len(tree.buffers)}")
    shape = _list(tensor.shape)
    if any(side < 0 for side in shape):
        raise BadFile(f"a tensor has shape {shape}")
    data = tree.buffers[tensor.buffer].data
    kind = DTYPES.get(names("TensorType").get(tensor.type, ""))
    if data is None or not len(data) or kind is None or tensor.sparsity is not None:
        return
    if len(data) != prod(shape) * np.dtype(kind).itemsize:
        raise BadFile(f"a tensor of shape {shape} lies in {len(data):,} bytes")
    quantised = tensor.quantization
    scale = None if quantised is None else quantised.scale
    if scale is not None and not np.isfinite(scale).all():
        raise BadFile("a scale is not finite")


def _list(array: Any) -> list[int]:
    return [] if array is None else [int(i) for i in array]


def _inside(indices: set[int], count: int, what: str) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise BadFile(f"{what} is tensor {index} of {count}")
