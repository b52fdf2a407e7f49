"""StepRunner: a step from its file, on images of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ...errors import TiledSEError, first_line
from .exporting import middle_of
from .header import KEY, Header, read_header
from .run import StepRun
from .sessions import BACKENDS, OnnxSession, OpenVinoSession, Session

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
    import onnx

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise TiledSEError(f"cannot read {path}: {error.strerror or first_line(error)}") from error
    except Exception as error:  # protobuf's DecodeError, whichever protobuf it is
        raise TiledSEError(f"{path} is no ONNX file, or it was cut off: {first_line(error, 80)}") from error
    return next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
