"""Counters on a GPU that are multiples of 256 before a kernel and after it."""

from __future__ import annotations

import torch
from torch import Tensor

# Counters that launches captured into CUDA graphs take theirs from: 4 MB, enough for a thousand launches of 1024 tiles.
_RESERVED = 1 << 20


class Counters:
    """Counters for the kernels of one GPU, without a launch that sets them.

    Kernels of one stream run one after the other, so they share counters. A launch that is captured into a CUDA
    graph may run later, beside any other, so it gets counters that no other launch has.
    """

    def __init__(self) -> None:
        self._by_stream: dict[int, Tensor] = {}
        self._reserve: Tensor | None = None
        self._taken = 0

    def take(self, number: int, device: torch.device) -> Tensor:
        """At least ``number`` counters, int32."""
        number = -(-number // 64) * 64
        if torch.cuda.is_current_stream_capturing():
            if self._reserve is None or self._taken + number > _RESERVED:
                return torch.zeros(number, dtype=torch.int32, device=device)
            self._taken += number
            return self._reserve[self._taken - number : self._taken]
        stream = torch.cuda.current_stream(device).cuda_stream
        counters = self._by_stream.get(stream)
        if counters is None or counters.numel() < number:
            counters = torch.zeros(max(number, 4096), dtype=torch.int32, device=device)
            self._by_stream[stream] = counters
            if self._reserve is None:
                self._reserve = torch.zeros(_RESERVED, dtype=torch.int32, device=device)
                # Written before any stream reads them; once for each GPU.
                torch.cuda.synchronize(device)
        return counters


_of_device: dict[torch.device, Counters] = {}


def counters(number: int, device: torch.device) -> Tensor:
    """At least ``number`` counters for a kernel that adds 256, or nothing, to each."""
    if device.type != "cuda":
        return torch.zeros(number, dtype=torch.int32, device=device)
    return _of_device.setdefault(device, Counters()).take(number, device)
