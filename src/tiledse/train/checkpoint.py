"""Checkpoints: one file that holds all of a run, written whole, read without running any code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ..documents import write_json
from ..errors import TiledSEError, first_line
from ..files import written_whole
from .tables import differences

FORMAT = "tiledse.checkpoint/1"


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; the one before stays until this one is whole.

    Raises:
        TiledSEError: the disk is full, or the folder is gone.
    """
    held = io.BytesIO()
    torch.save({"format": FORMAT, **state}, held)
    with written_whole(path) as part:
        part.write_bytes(held.getbuffer())


def read_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the run that ``identity`` names.

    Args:
        path: The file.
        identity: The recipe as a dictionary, with variant and seed.

    Raises:
        TiledSEError: it cannot be read, or is of another run; says in what.
    """
    again = f"give another folder with -o, or --restart to begin again and lose what {path} holds"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has its own errors for each kind of damage
        raise TiledSEError(f"cannot read checkpoint {path}: {first_line(error, 120)}; {again}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TiledSEError(f"{path} is no checkpoint of this version of tiledse; {again}")
    if apart := differences(identity, state["identity"]):
        more = f" (and {len(apart) - 1} more)" if len(apart) > 1 else ""
        key, here, there = apart[0]
        values = f"{key} is {write_json(there)} there and {write_json(here)} here{more}"
        raise TiledSEError(f"{path} is of another recipe: {values}; {again}")
    return state
