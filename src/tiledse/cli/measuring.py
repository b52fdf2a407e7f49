"""What the measuring verbs share: how their options become a network and a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..errors import TiledSEError
from ..evaluate.processes import joined_processes, own_device, part, together
from ..evaluate.tasks import Task
from ..network import Network
from ..plan import Plan
from .app import say
from .arguments import tell_random
from .data import Data, Images
from .model import Model
from .progress import progress_bar

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True)
class Opened:
    """A network and what it is measured on."""

    network: Network
    task: Task[Any]


def open_measured(
    model: Model,
    where: torch.device,
    data: Images,
    labels: bool = True,
    admit: Callable[[Network], None] = lambda network: None,
) -> Opened:
    """MODEL and the task that the options ask for.

    Args:
        model: MODEL and its options.
        where: The device.
        data: --data and its options.
        labels: Whether images without labels are refused.
        admit: Refuses a network before its images are looked at.

    Raises:
        TiledSEError: wrong use of any of them.
    """
    data.source()
    network = model.open(where)
    admit(network)
    network.plan.check_blocks()
    return Opened(network, task_of(model.model, network, data, labels))


def task_of(model: str, network: Network, data: Images, labels: bool) -> Task[Any]:
    """The task that --data and its options ask of a network.

    Args:
        model: MODEL.
        network: What it opened as.
        data: --data and its options.
        labels: Whether images without labels are refused.
    """
    return data.source().open(network, labels=labels, name=model, tell=say)


def in_processes(where: torch.device, work: Callable[[bool], T]) -> T | None:
    """Run the same work in every process that torchrun started.

    Args:
        where: The device of this process.
        work: Called with whether this process is the one that speaks.

    Returns:
        What ``work`` gave, in the process that speaks; None in the others.

    Raises:
        TiledSEError: in the process that speaks. All have the same error; were another to fail first, torchrun would
            kill the one that says why.
    """
    with joined_processes(where):
        speaks = part()[0] == 0
        try:
            result = work(speaks)
        except TiledSEError:
            if speaks:
                raise
            return None
    return result if speaks else None


def opened_together(open_: Callable[[], Opened], speaks: bool) -> Opened:
    """Open network and task in every process, and say where weights are random."""
    opened = together(open_)
    tell_random(opened.network.random and speaks)
    return opened


def measured(
    model: Model,
    data: Data,
    check: Callable[[], None],
    choose: Callable[[Plan], C],
    measure: Callable[..., T],
    labels: bool = False,
    admit: Callable[[Network], None] = lambda network: None,
) -> tuple[str, C, T] | None:
    """One measurement of one network, by all processes that torchrun started.

    Args:
        model: MODEL and its options.
        data: --data and its options.
        check: Refuses wrong use before anything is opened.
        choose: What is measured, from the plan of the network as it was found.
        measure: Called with what was opened, what was chosen, and how: batch_size, workers, device, progress.
        labels: Whether images without labels are refused.
        admit: Refuses a network before its images are looked at.

    Returns:
        The name of the network, what was chosen and what was measured, in the process that speaks; else None.

    Raises:
        TiledSEError: wrong use of any option.
    """
    where = own_device(data.device)

    def work(speaks: bool) -> tuple[str, C, T]:
        check()
        chosen: list[C] = []

        def open_() -> Opened:
            opened = open_measured(model, where, data, labels, admit)
            chosen.append(choose(opened.network.plan))
            return opened

        opened = opened_together(open_, speaks)
        with progress_bar("images", shown=speaks) as progress:
            found = measure(
                opened, chosen[0], batch_size=data.batch_size, workers=data.workers, device=where, progress=progress
            )  # fmt: skip
        return opened.network.name, chosen[0], found

    return in_processes(where, work)
