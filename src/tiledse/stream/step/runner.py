"""StepRunner: a step from its file, on images of rows."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal

from ...errors import TiledSEError, first_line
from .exporting import middle_of
from .header import KEY, Header, read_header
from .run import StepRun
from .sessions import BACKENDS, OnnxSession, OpenVinoSession, Session

# The field of a ModelProto that holds its metadata (onnx.proto).
_METADATA = 14
Backend = Literal["onnxruntime", "openvino"]


class StepRunner(StepRun):
    """Runs the file of a step (``export_step``) on images that come row by row.

    The step without edges, which lies beside the file, is taken where it is there and belongs to it.

    Args:
        path: The file of the step.
        height: Rows of an image; None if it shows when the image ends.
        backend: ``onnxruntime`` or ``openvino``.
        threads: Threads to use; 0 leaves it to the runtime.

    Raises:
        TiledSEError: the file is no step, the runtime is not installed or does not take it, or the network does not
            take the height.

    Example:
        >>> StepRunner("nowhere.onnx")
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: cannot read nowhere.onnx: No such file or directory
    """

    def __init__(
        self,
        path: str | Path,
        height: int | None = None,
        *,
        backend: Backend = "onnxruntime",
        threads: int = 0,
    ) -> None:
        path = Path(path)
        header = header_of(path)
        super().__init__(open_session(path, header, backend, threads), header, height)
        self.path = path


def open_session(path: Path, header: Header, backend: str, threads: int) -> Session:
    """Open the file of a step, and the step without edges beside it.

    Raises:
        TiledSEError: no such runtime, it is not installed, or it does not take a file.
    """
    if backend not in BACKENDS:
        raise TiledSEError(f"expected the backend onnxruntime or openvino, got {backend!r}")
    files = {"step": path}
    middle = middle_of(path)
    if middle.is_file() and header_of(middle).identity == header.identity:
        files["middle"] = middle
    return (OnnxSession if backend == "onnxruntime" else OpenVinoSession)(files, header, threads)


def is_step(path: str | Path) -> bool:
    """Whether a name is the file of a step."""
    path = Path(path)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return False
    try:
        return _stated(path) is not None
    except TiledSEError:
        return False


def header_of(path: Path) -> Header:
    """What the file of a step says of itself.

    Raises:
        TiledSEError: no such file, no ONNX, or no step.
    """
    return read_header(_stated(path), str(path))


def _stated(path: Path) -> str | None:
    """The entry of a file's metadata. All else, which is the weights, is passed over and not read."""
    try:
        with path.open("rb") as file:
            size, entries = path.stat().st_size, []
            while file.tell() < size:
                field, kind = divmod(_varint(file), 8)
                if kind == 0:
                    _varint(file)
                    continue
                if kind != 2:
                    raise ValueError(f"no field of a model is of kind {kind}")
                length = _varint(file)
                if file.tell() + length > size:
                    raise ValueError(f"it ends after {size} bytes")
                if field == _METADATA:
                    entries.append(file.read(length))
                else:
                    file.seek(length, 1)
    except OSError as error:
        raise TiledSEError(f"cannot read {path}: {error.strerror or first_line(error)}") from error
    except ValueError as error:
        raise TiledSEError(f"{path} is no ONNX file, or it was cut off: {error}") from error
    return _entry(path, entries)


def _entry(path: Path, entries: list[bytes]) -> str | None:
    from onnx import StringStringEntryProto

    for data in entries:
        entry = StringStringEntryProto()
        try:
            entry.ParseFromString(data)
        except Exception as error:  # protobuf's DecodeError, whichever protobuf it is
            raise TiledSEError(f"{path} is no ONNX file: {first_line(error, 80)}") from error
        if entry.key == KEY:
            return entry.value
    return None


def _varint(file: IO[bytes]) -> int:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    number = shift = 0
    while shift < 64:
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a number")
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
        shift += 7
    raise ValueError("a number of more than 64 bits")
