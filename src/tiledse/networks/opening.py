"""Open networks of PyTorch: by MODEL text, or a module."""

from __future__ import annotations

from typing import Any

from ..errors import TiledSEError
from ..network import Given
from .finder import check_kind
from .image_config import image_config
from .loading import load
from .network import TorchNetwork


def open_named(name: str, given: Given) -> TorchNetwork:
    """The network of a MODEL text.

    Raises:
        TiledSEError: see ``loading.load``; also when no input size is known, or an option goes with other kinds.
    """
    if given.image is not None:
        raise TiledSEError(f"--image goes with FILE.onnx, got {name}; leave it out")
    size: Any = None if given.input_size is None else (*given.input_size,)
    loaded = load(
        name,
        weights=given.weights,
        pretrained=given.pretrained,
        input_size=size,
        runs=given.runs,
    )
    if loaded.input_size is None and given.example_inputs is None:
        raise TiledSEError(
            f"{name} does not say what it takes; give it with --input, such as 3x224x224 (of sound 80x1000, of clips "
            "3x16x224x224)"
        )
    if given.device is not None:
        loaded.model.to(given.device)
    return TorchNetwork(
        loaded.model, loaded.input_size, name=given.name or loaded.name, random=loaded.random,
        config=image_config(name, loaded.model), example_inputs=given.example_inputs,
    )  # fmt: skip


def open_object(source: object, given: Given) -> TorchNetwork | None:
    """A module of PyTorch as a network; None where it is something else."""
    from torch import nn

    if type(source).__module__.partition(".")[0] == "torch":
        check_kind(source)
    if not isinstance(source, nn.Module):
        return None
    if given.image is not None:
        raise TiledSEError("image goes with ONNX files; leave it out")
    if given.device is not None:
        # It would be moved, though it is to be left as it was.
        raise TiledSEError("device goes with a network that is named; move the module there yourself")
    return TorchNetwork(source, given.input_size, name=given.name, example_inputs=given.example_inputs)
