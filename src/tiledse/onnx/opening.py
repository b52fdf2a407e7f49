"""Open ONNX networks: by file, or what ``load`` gave."""

from __future__ import annotations

from pathlib import Path

from ..errors import TiledSEError
from ..network import Given
from .model import OnnxModel, load
from .network import OnnxNetwork
from .writing import write_exported

__all__ = ["open_named", "open_object", "write_exported"]


def open_named(name: str, given: Given) -> OnnxNetwork:
    """The network of FILE.onnx.

    Raises:
        TiledSEError: an option goes with networks of PyTorch, or see ``load``.
    """
    if given.weights is not None or given.pretrained:
        raise TiledSEError(f"{name} holds its weights; leave --weights and --pretrained out")
    return _opened(load(name, given.image), Path(name).name, given)


def open_object(source: object, given: Given) -> OnnxNetwork | None:
    """An ONNX network that was read; None where it is something else."""
    return _opened(source, None, given) if isinstance(source, OnnxModel) else None


def _opened(model: OnnxModel, name: str | None, given: Given) -> OnnxNetwork:
    called = name or model.name
    if given.device not in (None, "cpu"):
        raise TiledSEError(f"{called} runs in ONNX Runtime on the CPU; leave --device out")
    if given.example_inputs is not None:
        raise TiledSEError(f"{called} names its inputs; say with image which takes the image")
    return OnnxNetwork(model, given.input_size, name=given.name or name, threads=given.threads)
