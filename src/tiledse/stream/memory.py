"""Resident memory of this process: what it is, and the most it was while something ran (Linux)."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kilobytes(key: str) -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
    except OSError:
        pass
    return None


@contextmanager
def peak_resident() -> Iterator[Callable[[], int | None]]:
    """Measure by how many bytes resident memory grows at most in the block, whatever comes after it.

    The kernel's high-water mark is set back first, so this works only on Linux; elsewhere the result is None. Memory
    that was freed before and that the process keeps is given back first: taken again, it would not count.

    Yields:
        The growth: so far while the block runs, and that of the block once it has ended.

    Example:
        >>> with peak_resident() as grown:
        ...     block = bytearray(50_000_000)
        >>> more = bytearray(100_000_000)
        >>> grown() is None or 40_000_000 < grown() < 60_000_000
        True
    """
    _give_back()
    try:
        _RESET.write_text("5")
        base = _kilobytes("VmRSS")
    except OSError:
        base = None
    ended: list[int | None] = []

    def grown() -> int | None:
        if ended:
            return ended[0]
        peak = _kilobytes("VmHWM")
        return None if base is None or peak is None else max(0, peak - base) * 1024

    try:
        yield grown
    finally:
        ended.append(grown())


def _give_back() -> None:
    """Give the memory back that is free, but kept by the allocator of the C library, where that is glibc's."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
