"""Whether Triton's kernels may run on a map: what the environment asks for, and where the map is."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def kernels_are_on(x: Tensor) -> bool:
    """Whether kernels.py was asked for (TILEDSE_TRITON=1) and can run on x: on a GPU, or interpreted."""
    # Triton chooses its interpreter when it is imported; asking the environment takes 10 us once the cache is cold.
    return (x.is_cuda or _INTERPRETED) and os.environ.get("TILEDSE_TRITON") == "1" and x.numel() != 0


def fused_is_on(x: Tensor) -> bool:
    """Whether fused.py may run on x: on a GPU with Triton unless TILEDSE_TRITON=0, interpreted if that is 1."""
    if x.is_cuda:
        return os.environ.get("TILEDSE_TRITON") != "0" and _TRITON and capability(x.device) >= (8, 0)
    return kernels_are_on(x)


@lru_cache(maxsize=64)
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU; asking torch each time takes microseconds."""
    return torch.cuda.get_device_capability(device)
