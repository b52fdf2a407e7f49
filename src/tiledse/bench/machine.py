"""What a timing depends on besides the code: processor, threads, versions, allocator."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

import torch

from ..op import TiledSqueezeExcite, explain

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, as the allocators of long-running programs do; says whether memory is kept.

    By default glibc gives large blocks back to the system at once, and each new map is paid for in page faults,
    4 KB at a time: several copies' worth, whatever formula fills it. glibc before 2.38 keeps blocks when it is told to,
    but does not find them again: torch asks for aligned memory, glibc looks for the alignment more than that, and
    a block that was freed has room for its size only. So whether memory is kept is found out, not believed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
    except (OSError, AttributeError):
        pass  # another allocator may keep memory all the same
    return keeps_freed_memory()


def keeps_freed_memory() -> bool:
    """Whether new maps are made of the memory of freed ones, by the page faults that they cost; not known off Unix."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return False
    size, turns = 32 << 20, 6
    small, before = [], 0
    for turn in range(turns):
        if turn == 2:  # the first ones come from the system
            before = getrusage(RUSAGE_SELF).ru_minflt
        large = torch.zeros(size, dtype=torch.uint8)
        small.append(torch.zeros(1 << 16))  # what a network leaves between its maps, too large for older gaps
        del large
    paid = getrusage(RUSAGE_SELF).ru_minflt - before
    return paid < (turns - 2) * size / os.sysconf("SC_PAGESIZE") / 20


def kernel_of_maps() -> str:
    """The kernel that float32 maps on this CPU take: ``cpp`` or ``torch``."""
    (taken,) = explain(TiledSqueezeExcite(8, 4), torch.zeros(1, 8, 14, 14)).taken
    return taken.kernel or "torch"


def machine(allocator: str) -> dict[str, Any]:
    """The facts to be kept beside a timing."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "allocator": allocator,
        "kernels": kernel_of_maps(),
        "preload": Path(os.environ["LD_PRELOAD"]).name if os.environ.get("LD_PRELOAD") else None,
        "load": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
