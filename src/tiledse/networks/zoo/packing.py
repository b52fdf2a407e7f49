"""Weights for the zoo: half precision where it is harmless, one file with the plan inside."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import TiledSEError
from ...plan import Plan
from ..saving import write_state

LIMIT_BYTES = 20_000_000


def packed(model: nn.Module) -> dict[str, Tensor]:
    """A state dict with tensors of two or more dimensions in float16.

    The others - biases, normalisation's statistics, counters - are few, and a variance may lie outside of float16's
    range, so they stay as they are.

    Raises:
        TiledSEError: a weight is not finite, in float16 if not before.

    Example:
        >>> {key: value.dtype for key, value in packed(nn.Linear(2, 3)).items()}
        {'weight': torch.float16, 'bias': torch.float32}
    """
    state = {}
    for key, value in model.state_dict().items():
        value = value.detach().cpu().contiguous().clone()
        if value.is_floating_point() and value.ndim >= 2:
            value = value.to(torch.float16)
        if value.is_floating_point() and not value.isfinite().all():
            raise TiledSEError(
                f"the weight '{key}' is not finite in {value.dtype}; it cannot go into the zoo"
            )
        state[key] = value
    return state


def write_packed(state: dict[str, Tensor], plan: Plan, path: Path, name: str) -> str:
    """Write a packed state dict with the plan in its metadata; gives the file's SHA-256.

    Raises:
        TiledSEError: the file cannot be written.
    """
    write_state(state, plan, path, name)
    return hashlib.sha256(path.read_bytes()).hexdigest()
