"""Weights of PyTorch networks: read from files without running code, and refused where they are no numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from ..errors import TiledSEError, first_line
from ..files import near_files


def check_numbers(model: nn.Module, name: str, runs: bool = True) -> None:
    """Check that a network has numbers, and that they are finite.

    Buffers may be infinite, as masks of attention are; parameters and the statistics of normalisation may not.

    Args:
        model: The network; what is lazy and has no weights yet is left to who runs it.
        name: What messages call it.
        runs: Whether it is to be run; one that is only looked at may be on torch's device ``meta``, without numbers.

    Raises:
        TiledSEError: names the first tensor that is odd.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1))
        >>> check_numbers(model, "net")
        >>> model[0].bias.data[2] = float("nan")
        >>> check_numbers(model, "net")
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: the weights of net are no use: '0.bias' holds numbers that are not finite; ...
    """
    for path, tensor, statistics in _tensors(model):
        if is_lazy(tensor) or (tensor.is_meta and not runs):
            continue
        if (odd := _odd_numbers(tensor, tensor, statistics)) is not None:
            raise TiledSEError(
                f"the weights of {name} are no use: '{path}' {odd}; give it sound ones, such as with --weights FILE"
            )


def check_fitting(given: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """Check the numbers of those tensors of a state dict that the network has a place for.

    Raises:
        TiledSEError: names the first tensor that is odd.
    """
    for key, own, statistics in _tensors(model):
        if key in given and (odd := _odd_numbers(given[key], own, statistics)):
            raise TiledSEError(
                f"the weights {path} are no use: '{key}' {odd}; save the state dict of the network again"
            )


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or a torch checkpoint, without running any code in it.

    Raises:
        TiledSEError: the file is missing, was cut off, or holds more than tensors.
    """
    if not path.is_file():
        raise TiledSEError(
            f"no weights file {path}{near_files(path)}; expected .safetensors or a torch checkpoint"
        )
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
    check_fitting(state, model, path)
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


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Names of a state dict, their tensors, and whether they are statistics of a normalisation."""
    norms = {name for name, module in model.named_modules() if isinstance(module, _NormBase)}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            yield key, tensor, key.rpartition(".")[0] in norms


def _odd_numbers(given: Tensor, own: Tensor, statistics: bool) -> str | None:
    """Why a tensor's numbers cannot be a network's; None where they can."""
    if given.is_meta or given.layout != torch.strided or given.is_quantized:
        return "is sparse, quantised or without numbers, not a plain tensor"
    if given.is_complex() and not own.is_complex():
        return f"holds complex numbers, and the network's are {own.dtype}"
    if not given.is_floating_point():
        return None
    given = given.detach().float() if given.element_size() == 1 else given.detach()
    # Masks of attention hold -inf by design, and are no parameters; a number that is none never has a meaning.
    if isinstance(own, nn.Parameter) or statistics or not own.is_floating_point():
        return None if bool(given.isfinite().all()) else "holds numbers that are not finite"
    return "holds numbers that are NaN" if bool(given.isnan().any()) else None
