"""Open TensorFlow Lite networks: by file, or what ``load`` gave."""

from __future__ import annotations

from pathlib import Path

from ..file_network import check_named, opened
from ..network import Given
from .model import TfliteModel, load
from .network import TfliteNetwork

__all__ = ["open_named", "open_object"]

_RUNTIME = "LiteRT"


def open_named(name: str, given: Given) -> TfliteNetwork:
    """The network of FILE.tflite.

    Raises:
        TiledSEError: an option goes with networks of PyTorch, or see ``load``.
    """
    check_named(name, given)
    return opened(TfliteNetwork, _RUNTIME, load(name, given.image), Path(name).name, given)


def open_object(source: object, given: Given) -> TfliteNetwork | None:
    """A TensorFlow Lite network that was read; None where it is something else."""
    if not isinstance(source, TfliteModel):
        return None
    return opened(TfliteNetwork, _RUNTIME, source, None, given)
