"""FILE.onnx as the network: how it is told from others, opened and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TiledSEError

if TYPE_CHECKING:
    from ..onnx import OnnxModel
    from ..plan import Plan


def is_onnx(name: str | Path) -> bool:
    """Whether a MODEL, or an output, is an ONNX file."""
    return str(name).lower().endswith(".onnx")


def shown_name(model: str) -> str:
    """MODEL as it is printed: an ONNX file without its folder."""
    return Path(model).name if is_onnx(model) else model


def open_onnx(model: str, weights: Path | None, pretrained: bool, image: str | None = None) -> OnnxModel:
    """Read FILE.onnx.

    Raises:
        TiledSEError: the package onnx is not installed, --weights or --pretrained was given, or see ``onnx.load``.
    """
    if weights is not None or pretrained:
        raise TiledSEError(f"{model} holds its weights; leave --weights and --pretrained out")
    try:
        from ..onnx import load
    except ImportError as error:
        raise TiledSEError(
            f"{model} needs the package {error.name}; install it with: pip install 'tiledse[onnx]'"
        ) from error
    return load(model, image)


def find_any(
    model: str, size: str | None, weights: Path | None, pretrained: bool, image: str | None = None
) -> tuple[str, Plan]:
    """The name and the SE blocks of MODEL, PyTorch or ONNX."""
    from .arguments import load_model, parse_size

    if is_onnx(model):
        opened = open_onnx(model, weights, pretrained, image)
        from ..onnx import find

        return model, find(opened, parse_size(size))
    if image is not None:
        raise TiledSEError(f"--image goes with FILE.onnx, got {model}; leave it out")
    from ..networks import find as find_blocks

    loaded = load_model(model, size, weights, pretrained, runs=False)
    return loaded.name, find_blocks(loaded.model, loaded.input_size)
