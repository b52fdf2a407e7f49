"""Open ONNX networks: by file, or what ``load`` gave."""

from __future__ import annotations

from pathlib import Path

from ..file_network import check_named, opened
from ..network import Given
from .model import OnnxModel, load
from .network import OnnxNetwork
from .writing import write_exported

__all__ = ["open_named", "open_object", "write_exported"]

_RUNTIME = "ONNX Runtime"


def open_named(name: str, given: Given) -> OnnxNetwork:
    """The network of FILE.onnx.

    Raises:
        TiledSEError: an option goes with networks of PyTorch, or see ``load``.
    """
    check_named(name, given)
    return opened(OnnxNetwork, _RUNTIME, load(name, given.image), Path(name).name, given)


def open_object(source: object, given: Given) -> OnnxNetwork | None:
    """An ONNX network that was read; None where it is something else."""
    if not isinstance(source, OnnxModel):
        return None
    return opened(OnnxNetwork, _RUNTIME, source, None, given)
