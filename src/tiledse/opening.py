"""Open: a network of any kind by its name, its file or itself.

The kinds are listed here and nowhere else: a further kind is one room and one line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import TiledSEError
from .extras import missing
from .network import Given, Network

if TYPE_CHECKING:
    from torch import nn

    from .onnx import OnnxModel

# How the files of a kind end, and the module that opens it; "" opens what has a name and no file.
KINDS = {
    ".onnx": ".onnx.opening",
    ".tflite": ".tflite.opening",
    "": ".networks.opening",
}


# What needs no package beyond those of tiledse itself.
_PLAIN = {KINDS[""]}


def kind_of(name: str | Path) -> str:
    """The kind of a MODEL text or of a file, a key of ``KINDS``.

    Example:
        >>> kind_of("timm:regnety_008"), kind_of("Net.ONNX")
        ('', '.onnx')
    """
    text = str(name).lower()
    return next((ending for ending in KINDS if ending and text.endswith(ending)), "")


def written_endings() -> tuple[str, ...]:
    """How files end that a network can be written into.

    Example:
        >>> written_endings()
        ('.onnx', '.tflite', '.safetensors')
    """
    return (*filter(None, KINDS), ".safetensors")


def shown_name(name: str) -> str:
    """MODEL as it is printed: a file without its folder.

    Example:
        >>> shown_name("nets/a.onnx"), shown_name("timm:regnety_008")
        ('a.onnx', 'timm:regnety_008')
    """
    return Path(name).name if kind_of(name) else name


def open(
    source: str | Path | nn.Module | OnnxModel | Network,
    input_size: Sequence[int] | None = None,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    image: str | None = None,
    example_inputs: Any = None,
    device: str | None = None,
    threads: int | None = None,
    name: str | None = None,
    runs: bool = True,
) -> Network:
    """Open a network, and find its SE blocks.

    Args:
        source: ``timm:NAME``, ``torchvision:NAME``, ``effdet:NAME``, ``zoo:NAME``, ``package.module:factory``,
            ``FILE.onnx``, ``FILE.tflite``, a module of PyTorch, or what ``tiledse.onnx.load`` gives. A network that is
            open already is given back.
        input_size: (C, H, W) of its images; left out, the network's own.
        weights: A state dict, as safetensors or a torch checkpoint, for a network that is named.
        pretrained: Take the library's own weights, from its hub.
        image: Which input of a file takes the image, where several could.
        example_inputs: For a module that takes more or other than one image; see ``find``.
        device: Where a network of PyTorch that is named runs, such as ``cuda``. A module stays where it is.
        threads: Threads of ONNX Runtime or LiteRT; 0 leaves them to it, None takes torch's.
        name: What tables and messages call it; left out, its own name.
        runs: Whether it is to be run; one that is only looked at may be without numbers, on torch's device ``meta``.

    Returns:
        The network. Every verb takes it in place of what was given here.

    Raises:
        TiledSEError: no such network, weights that do not fit, no known input size, an option that its kind does not
            take, or a network that cannot be read.

    Example:
        >>> import timm
        >>> network = open(timm.create_model("regnety_002"), (3, 64, 64))
        >>> network.kind, len(network.plan), open(network) is network
        ('PyTorch', 13, True)
    """
    given = Given(input_size, weights, pretrained, image, example_inputs, device, threads, name, runs)
    if isinstance(source, Network):
        if given != Given() and not (
            given == Given(input_size) and tuple(input_size or ()) == source.plan.input_size
        ):
            raise TiledSEError(
                f"{source.name} is open already, at {'x'.join(map(str, source.plan.input_size))}; give what it was "
                "opened from to open it in another way"
            )
        return source
    if isinstance(source, (str, Path)):
        try:
            room = _room(KINDS[kind_of(source)])
        except ModuleNotFoundError as error:
            if not kind_of(source):
                raise
            # Packages of ONNX are called as their modules, but for the hyphen.
            name_on_index = (error.name or "onnx").partition(".")[0].replace("_", "-")
            raise missing(f"{source} needs", name_on_index) from error
        opened: Network = room.open_named(str(source), given)
        return opened
    if weights is not None or pretrained:
        raise TiledSEError("weights and pretrained go with a network that is named; this one has its weights")
    for kind in KINDS.values():
        if (
            kind in _PLAIN or f"{__package__}{kind.rpartition('.')[0]}" in sys.modules
        ):  # else nobody has one of it
            found: Network | None = _room(kind).open_object(source, given)
            if found is not None:
                return found
    raise TiledSEError(
        f"expected a network: a name such as 'timm:regnety_008', a file, or a torch.nn.Module; got "
        f"{type(source).__name__}"
    )


def module_of(source: Any, input_size: Sequence[int], purpose: str) -> nn.Module:
    """The module of PyTorch of a network, or of what ``open`` takes: what rooms need that read its operators.

    Raises:
        TiledSEError: a network of another kind, or see ``open``.
    """
    from torch import nn

    if isinstance(source, nn.Module):
        return source
    network = source if isinstance(source, Network) else open(source, input_size)
    return network.module(purpose)


def _room(name: str) -> Any:
    return import_module(name, __package__)
