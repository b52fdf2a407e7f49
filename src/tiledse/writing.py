"""Write a converted network: in a file of its own kind, or exported to another."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .errors import TiledSEError
from .network import Form, Network, Written
from .opening import KINDS
from .plan import Plan


def write(network: Network, plan: Plan, path: str | Path, form: Form | None = None) -> Written:
    """Write a network with the tiles of a plan; what was made is verified before.

    Args:
        network: From ``tiledse.open``.
        plan: Its tiles.
        path: The ending says the kind: that of the network, or ``.onnx`` to export one of PyTorch.
        form: How it is to be written.

    Returns:
        What was written, and what verifying gave.

    Raises:
        TiledSEError: an ending that this network cannot be written with, see ``convert``, or the file cannot be
            written. Nothing is there then.
    """
    path, form = Path(path), form or Form()
    ending = path.suffix.lower()
    if ending == network.file_ending:
        return network.write(plan, path, form)
    room = KINDS.get(ending)
    exported = None if room is None else getattr(import_module(room, __package__), "write_exported", None)
    if exported is None or not network.exports:
        raise TiledSEError(
            f"{network.name} is of {network.kind}; give an output that ends in {network.file_ending}, got {path}"
        )
    written: Written = exported(network, plan, path, form)
    return written
