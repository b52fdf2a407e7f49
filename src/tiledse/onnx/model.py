"""OnnxModel: an ONNX file in memory; read with every check, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common._c_api_utils import call_onnx_api

import onnx

from ..errors import TiledSEError, first_line
from ..files import near_files, written_whole
from .external import attach, check_finite
from .lifting import lift

# The oldest opset that is read, and the oldest that tiles are written in.
OLDEST_READ, OLDEST_OPSET = 7, 11
# A protobuf message ends at 2 GiB; weights beyond this go into a file beside it.
_LARGEST_MESSAGE = 1_900_000_000


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """An ONNX network.

    Args:
        ir: The graph, as onnx-ir holds it. Weights that lie in a file of their own are mapped.
        path: The file that it came from; None where it was made here.
        data_files: The files beside it that hold weights.
        image: Which input takes the image; needed where several have 4 axes.
    """

    ir: ir.Model
    path: Path | None = None
    data_files: tuple[Path, ...] = ()
    image: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path) if self.path is not None else (self.ir.graph.name or "the ONNX network")

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return int(self.ir.opset_imports.get("", 0))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weights, wherever they lie."""
        return sum(
            v.const_value.nbytes for v in self.ir.graph.initializers.values() if v.const_value is not None
        )

    def clone(self) -> OnnxModel:
        """Another graph with the same weights, shared with this one."""
        return replace(self, ir=self.ir.clone())

    def to_proto(self) -> onnx.ModelProto:
        """The protobuf message, with all weights in it."""
        return ir.to_proto(self.ir)


def load(path: str | Path, image: str | None = None) -> OnnxModel:
    """Read an ONNX file and check it.

    Args:
        path: The file; weights stored beside it are mapped, not read.
        image: Which input takes the image, where several have 4 axes.

    Raises:
        TiledSEError: the file is missing, is no ONNX file, was cut off, fails onnx.checker, has an opset below 7,
            lacks its weights or keeps them elsewhere than beside it, holds weights that are not finite, or is larger
            than the memory of this machine.

    Example:
        >>> load("nowhere.onnx")
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: cannot read nowhere.onnx: No such file or directory
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise TiledSEError(f"cannot read {path}: it is a folder; give an .onnx file")
        check_memory(size, path)
        proto = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        near = near_files(path) if isinstance(error, FileNotFoundError) else ""
        raise TiledSEError(f"cannot read {path}: {error.strerror or first_line(error)}{near}") from error
    except TiledSEError:
        raise
    except Exception as error:  # protobuf's DecodeError, whichever protobuf it is
        raise TiledSEError(
            f"{path} is no ONNX file, or it was cut off: {first_line(error, 80)}; get the file again"
        ) from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise TiledSEError(
            f"{path} is no ONNX file, or it was cut off: it holds no graph; get the file again"
        )
    model = _from_proto(proto, path)
    files = attach(model.ir, path)
    if files:
        _read_small(model)
        # Without the large weights: a message that holds them may be too large to be one.
        _told(path, lambda: call_onnx_api(onnx.checker.check_model, model.ir.clone()))
    else:
        check(proto, path)
    check_finite(model.ir, model.name)
    lift(model.ir)
    return OnnxModel(model.ir, path, files, image)


def from_proto(proto: onnx.ModelProto) -> OnnxModel:
    """An ONNX network that was made in memory, checked like one that was read.

    Raises:
        TiledSEError: it fails onnx.checker, or its opset is below 7.
    """
    model = _from_proto(proto, None)
    check(proto, None)
    lift(model.ir)
    return model


def upgraded(model: OnnxModel) -> OnnxModel:
    """A network in an opset that tiles can be written in: itself, or what onnx's version converter makes of it.

    Raises:
        TiledSEError: the converter does not take it.
    """
    if model.opset >= OLDEST_OPSET:
        return model
    from onnx import version_converter

    try:
        proto = version_converter.convert_version(model.to_proto(), OLDEST_OPSET)
        onnx.checker.check_model(proto)
        return replace(model, ir=ir.from_proto(proto))
    except Exception as error:
        raise TiledSEError(
            f"{model.name} uses ONNX opset {model.opset}, tiles need {OLDEST_OPSET} or newer, and onnx's version "
            f"converter does not take it: {first_line(error, 120)}; export it again with opset {OLDEST_OPSET} or newer"
        ) from error


def _from_proto(proto: onnx.ModelProto, path: Path | None) -> OnnxModel:
    name = path or "the ONNX network"
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_READ:
        raise TiledSEError(
            f"{name} uses ONNX opset {opset}, but {OLDEST_READ} or newer is read; export it again with opset "
            f"{OLDEST_OPSET} or newer"
        )
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise TiledSEError(f"{name} is no valid ONNX network: {first_line(error, 120)}") from error
    return OnnxModel(model, path)


def check(proto: onnx.ModelProto, path: Path | None) -> None:
    """Run onnx.checker.

    Raises:
        TiledSEError: what it says, in one line.
    """
    _told(path, lambda: onnx.checker.check_model(proto))


def _told(path: Path | None, run: Callable[[], Any]) -> None:
    try:
        run()
    except Exception as error:
        raise TiledSEError(
            f"{path or 'the ONNX network'} fails onnx.checker: {first_line(error, 140)}; mend the file or export it "
            "again"
        ) from error


def check_memory(size: int, path: str | Path) -> None:
    """Refuse what cannot be held.

    Raises:
        TiledSEError: ``size`` bytes are more than the memory that is free.
    """
    free = free_memory()
    if free is not None and size > free:
        raise TiledSEError(
            f"{path} holds {size:,} bytes, but only {free:,} bytes of memory are free; use a machine with more"
        )


def free_memory() -> int | None:
    """Bytes of memory that are free, or None where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _read_small(model: OnnxModel, limit: int = 4096) -> None:
    """Read constants such as axes and shapes at once: inference of shapes looks at them."""
    for value in model.ir.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= limit:
            value.const_value = ir.tensor(tensor.numpy().copy(), name=value.name)


def save(model: OnnxModel, path: str | Path, *, force: bool = False) -> None:
    """Write an ONNX file, whole or not at all.

    Weights of more than 1.9 GB in all go into ``NAME.onnx.data`` beside it, since a protobuf message ends at 2 GiB.

    Args:
        model: What to write.
        path: Where to.
        force: Replace a file that is there.

    Raises:
        TiledSEError: the path exists and ``force`` is not given, or the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir() and not force:
        raise TiledSEError(f"{path} exists; give another name, or --force to replace it")
    if model.weight_bytes > _LARGEST_MESSAGE:
        data = path.with_name(f"{path.name}.data")
        if data.exists() and not force:
            raise TiledSEError(f"{data} exists; give another name, or --force to replace it")
        _save_with_data(model, path)
        return
    message = model.to_proto().SerializeToString()
    with written_whole(path) as part:
        part.write_bytes(message)


def _save_with_data(model: OnnxModel, path: Path) -> None:
    data = path.name + ".data"
    if not path.parent.is_dir():
        raise TiledSEError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}."))
        needed, free = model.weight_bytes, shutil.disk_usage(folder).free
        if needed > free:
            raise TiledSEError(
                f"cannot write {path}: its weights hold {needed:,} bytes and {free:,} are free on the disk"
            )
        ir.save(model.ir.clone(), folder / path.name, external_data=data)
        # The weights first: a model without them would be half-written.
        (folder / data).replace(path.parent / data)
        (folder / path.name).replace(path)
    except OSError as error:
        raise TiledSEError(f"cannot write {path}: {error.strerror or first_line(error)}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
