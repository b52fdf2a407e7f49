"""Which of some blocks make a network differ: all together, each alone, and those that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Figures = TypeVar("Figures")


def blamed(
    names: Sequence[str], run: Callable[[Sequence[str]], tuple[Figures, str]]
) -> tuple[Figures | None, dict[str, str]]:
    """Run a network with some blocks changed; where it differs, find out whose fault that is.

    Args:
        names: The blocks.
        run: Runs it with some of them changed: figures, and why it is not the same, which is empty where it is.

    Returns:
        The figures of the run with all blocks that are not at fault, None where there are none; and by block at
        fault, the reason.
    """
    if not names:
        return None, {}
    figures, fault = run(names)
    if not fault:
        return figures, {}
    found = {name: alone for name in names if (alone := run([name])[1])}
    left = [name for name in names if name not in found]
    if found and left:
        figures, fault = run(left)
    if left and not fault:
        return figures, found
    return None, {**found, **dict.fromkeys(left, fault)}  # those that are left differ only all together
