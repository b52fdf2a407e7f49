"""A progress bar on standard error, for what takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(title: str, shown: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """A bar that goes when the work is done; nothing where standard error is a file or pipe.

    Args:
        title: What is done.
        shown: False for the processes of torchrun that print nothing.

    Yields:
        To be called with (done, in all, or None where that is not known).
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
