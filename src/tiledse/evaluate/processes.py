"""One measurement by several processes, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

from ..errors import TiledSEError, first_line

T = TypeVar("T")


def own_device(name: str) -> torch.device:
    """The device of this process: ``cuda`` is the GPU with its number among those of this machine.

    Raises:
        TiledSEError: no device of that name, or none of that kind here.

    Example:
        >>> own_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(1, device=device).fill_(0)
    # torch says AssertionError where it was built without CUDA, NotImplementedError for "meta" and the like.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TiledSEError(f"device '{name}' does not work here: {first_line(error)}; take cpu") from error
    if device.type not in ("cpu", "cuda"):
        raise TiledSEError(f"expected the device cpu, cuda or cuda:N, got '{name}'")
    return device


@contextmanager
def joined_processes(device: torch.device) -> Iterator[None]:
    """Join the other processes if torchrun started this one (gloo on CPU, nccl on CUDA); else do nothing."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def part() -> tuple[int, int]:
    """(number of this process, number of processes); (0, 1) alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def gather(value: T) -> list[T]:
    """The values of all processes, in every process, in order."""
    _, size = part()
    if size == 1:
        return [value]
    values: list[T | None] = [None] * size
    distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def together(work: Callable[[], T]) -> T:
    """Do the same work in every process; what is wrong in one is raised in all.

    A process that left alone would keep the others waiting for it.

    Raises:
        TiledSEError: of the first process that had one.
    """
    value: list[T] = []
    failure: TiledSEError | None = None
    try:
        value.append(work())
    except TiledSEError as error:
        failure = error
    failures = [failed for failed in gather(failure) if failed is not None]
    if failures:
        raise failures[0] from failure
    return value[0]
