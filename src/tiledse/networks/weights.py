"""Read weights from a file, without running code that it holds, and load them into a network that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TiledSEError, first_line


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or a torch checkpoint, without running any code in it.

    Raises:
        TiledSEError: the file is missing, was cut off, or holds more than tensors.
    """
    if not path.is_file():
        raise TiledSEError(f"no weights file {path}; expected .safetensors or a torch checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for a corrupt file
        what = first_line(error, 120)
        if "Weights only load failed" in str(error) or "weights_only" in str(error):
            what = "it holds Python objects beside tensors, which are never loaded, or sparse ones; save a state_dict"
        raise TiledSEError(f"cannot read weights {path}: {what}") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    named = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )
    if not named:
        raise TiledSEError(f"{path} holds no state dict; expected names and tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _odd_numbers(given: Tensor, own: Tensor) -> str | None:
    """Why a tensor's numbers cannot be a network's; None where they can."""
    if given.is_meta or given.layout != torch.strided or given.is_quantized:
        return "is sparse, quantised or without numbers, not a plain tensor"
    if given.is_complex() and not own.is_complex():
        return f"holds complex numbers, and the network's are {own.dtype}"
    if not given.is_floating_point():
        return None
    # Masks of attention hold -inf by design, and are no parameters; a number that is none never has a meaning.
    finite = torch.isfinite(given.float() if given.element_size() == 1 else given)
    if isinstance(own, nn.Parameter) or not own.is_floating_point():
        return None if bool(finite.all()) else "holds numbers that are not finite"
    return "holds numbers that are NaN" if bool(given.float().isnan().any()) else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a network; every name and shape must fit.

    Raises:
        TiledSEError: the file cannot be read, does not fit (says the first difference), or holds numbers that are
            not finite.
    """
    state = read_state(path)
    own = model.state_dict(keep_vars=True)
    shapes = [
        f"'{key}' is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the network"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    for key, value in state.items():
        if key in own and (odd := _odd_numbers(value, own[key])):
            raise TiledSEError(
                f"the weights {path} are no use: '{key}' {odd}; save the state dict of the network again"
            )
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    if shapes or missing or extra:
        first = (
            shapes[0]
            if shapes
            else f"'{missing[0]}' is not in the file"
            if missing
            else f"the network has no '{extra[0]}'"
        )
        raise TiledSEError(
            f"the weights {path} do not fit the network: {first} ({len(shapes)} of another shape, "
            f"{len(missing)} missing, {len(extra)} too many); give the weights of this very network"
        )
    model.load_state_dict(state)
