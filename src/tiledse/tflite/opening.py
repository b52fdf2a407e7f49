"""Open TensorFlow Lite networks: by file, or what ``load`` gave."""

from __future__ import annotations

from pathlib import Path

from ..errors import TiledSEError
from ..network import Given
from .model import TfliteModel, load
from .network import TfliteNetwork

__all__ = ["open_named", "open_object"]


def open_named(name: str, given: Given) -> TfliteNetwork:
    """The network of FILE.tflite.

    Raises:
        TiledSEError: an option goes with networks of PyTorch, or see ``load``.
    """
    if given.weights is not None or given.pretrained:
        raise TiledSEError(f"{name} holds its weights; leave --weights and --pretrained out")
    return _opened(load(name, given.image), Path(name).name, given)


def open_object(source: object, given: Given) -> TfliteNetwork | None:
    """A TensorFlow Lite network that was read; None where it is something else."""
    return _opened(source, None, given) if isinstance(source, TfliteModel) else None


def _opened(model: TfliteModel, name: str | None, given: Given) -> TfliteNetwork:
    called = name or model.name
    if given.device not in (None, "cpu"):
        raise TiledSEError(f"{called} runs in LiteRT on the CPU; leave --device out")
    if given.example_inputs is not None:
        raise TiledSEError(f"{called} names its inputs; say with image which takes the image")
    return TfliteNetwork(model, given.input_size, name=given.name or name, threads=given.threads)
