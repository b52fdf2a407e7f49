"""Weights of an ONNX file: those kept in files beside it are mapped, and none may be NaN."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx_ir as ir

from ..errors import TiledSEError, first_line
from ..files import is_file

_REAL = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
# Their weights are finite; elsewhere an infinity may be meant: the bounds of a Clip, the mask of a softmax.
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization"}


def attach(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Put mapped arrays in the place of all references to files beside an ONNX file. Nothing is read yet.

    A reference leads nowhere but to a regular file in the folder of the ONNX file or below it, and that is asked of the
    files behind symbolic links: those of Hugging Face's cache, where both lie in ``blobs``, are read. A file that has
    several names (hard links), as stores that keep equal files once make them, is as good as any.

    Args:
        model: As it was read; changed in place.
        path: The ONNX file.

    Returns:
        The files.

    Raises:
        TiledSEError: a reference that leads elsewhere, a file that is missing or too short.
    """
    files: dict[Path, None] = {}

    def mapped(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        data = _located(tensor, path)
        files[data] = None
        return _map(tensor, data, path)

    _replace(model, mapped)
    return tuple(files)


def check_finite(model: ir.Model, name: str) -> None:
    """Check that no weight is NaN, and none of a layer infinite.

    Raises:
        TiledSEError: names the first that is.
    """
    layers = {
        value
        for node in model.graph.all_nodes()
        if node.op_type in _LAYERS and node.domain in ("", "ai.onnx")
        for value in node.inputs
    }

    def check(tensor: ir.TensorProtocol, finite: bool) -> ir.TensorProtocol:
        try:
            array = tensor.numpy()
        except Exception as error:  # shapes and bytes that do not go together, which onnx.checker lets pass
            raise TiledSEError(
                f"{name}: the weight '{tensor.name}' cannot be read: {first_line(error, 120)}; get the file again"
            ) from error
        if array.shape != tuple(tensor.shape.numpy()):
            raise TiledSEError(
                f"{name}: the weight '{tensor.name}' is {array.shape}, the file says {tensor.shape}; get the file again"
            )
        odd = tensor.dtype in _REAL and not np.isfinite(array).all()
        if odd and (finite or np.isnan(array).any()):
            raise TiledSEError(
                f"{name}: the weight '{tensor.name}' holds numbers that are not finite; export the network again "
                "from whole weights"
            )
        return tensor

    for value in model.graph.initializers.values():
        if value.const_value is not None:
            check(value.const_value, value in layers)
    for node in model.graph.all_nodes():
        if (
            node.op_type == "Constant"
            and (given := node.attributes.get("value")) is not None
            and not given.is_ref()
        ):
            check(given.as_tensor(), node.outputs[0] in layers)


def _located(tensor: ir.ExternalTensor, path: Path) -> Path:
    """The file that a reference leads to."""
    location = str(tensor.location)
    parts = PurePosixPath(location).parts
    outside = ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
    if not parts or outside or "\0" in location:
        raise TiledSEError(
            f"{path} keeps the weight '{tensor.name}' in {location or 'a file without a name'}, which is not in its "
            "own folder; put the file beside it and save the network with that name"
        )
    data = path.parent
    for part in parts:
        data = data / part
        if len(os.fsencode(part)) > 255:  # longer than names can be: asking for it would fail
            break
        if data.is_symlink() and not _beside(data, path):
            raise TiledSEError(
                f"{path} keeps its weights in {location}, and {data} is a symbolic link that leads elsewhere "
                f"than {path} does; copy both as files, such as with: cp -L {path.name} {location} FOLDER"
            )
    if not is_file(data):
        raise TiledSEError(f"{path} keeps its weights in {data}, which is missing; put that file beside it")
    return data


def _beside(link: Path, path: Path) -> bool:
    """Whether a link leads into the folder that the ONNX file really lies in, or below: where a name may lead too."""
    try:
        return link.resolve(strict=True).is_relative_to(path.resolve(strict=True).parent)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return False


def _map(tensor: ir.ExternalTensor, data: Path, path: Path) -> ir.TensorProtocol:
    offset, length, size = tensor.offset or 0, tensor.length, data.stat().st_size
    sides = tensor.shape.numpy()
    if offset < 0 or any(side < 0 for side in sides) or (length is not None and length != tensor.nbytes):
        raise TiledSEError(
            f"{path}: the weight '{tensor.name}' of shape {sides} needs {tensor.nbytes} bytes, but the file says "
            f"{length} from {offset} on; get it again"
        )
    if offset + tensor.nbytes > size:
        raise TiledSEError(
            f"{data}, with the weights of {path}, was cut off: '{tensor.name}' ends beyond its end; get it again"
        )
    # Without a base folder onnx-ir asks nothing more of the path: it was asked above, and hard links are no harm.
    there = ir.ExternalTensor(
        str(data), offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(sides), name=tensor.name, base_dir=""
    )
    return ir.Tensor(there.numpy(), dtype=tensor.dtype, shape=ir.Shape(sides), name=tensor.name)


def _replace(model: ir.Model, new: Callable[[ir.TensorProtocol], ir.TensorProtocol]) -> None:
    """Put other tensors in the place of all that a network stores."""
    for graph in _graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = new(value.const_value)
        for node in graph:
            for name, given in list(node.attributes.items()):
                if given.is_ref() or given.value is None:
                    continue
                if given.type == ir.AttributeType.TENSOR:
                    node.attributes[name] = ir.AttrTensor(name, new(given.as_tensor()))
                elif given.type == ir.AttributeType.TENSORS:
                    node.attributes[name] = ir.AttrTensors(
                        name, [new(tensor) for tensor in given.as_tensors()]
                    )


def _graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()
