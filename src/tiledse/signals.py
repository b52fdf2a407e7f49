"""What Ctrl-C, SIGTERM and SIGHUP do: one line, a status that says which, and no half-written file."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_KINDS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP


def said(number: int) -> str:
    """A signal in a word.

    Example:
        >>> said(signal.SIGINT), said(signal.SIGTERM)
        ('interrupted', 'terminated')
    """
    return "interrupted" if number == signal.SIGINT else "terminated"


def quit_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for while nothing is written: an exception could be swallowed by what is being imported."""
    os.write(2, f"tiledse: {said(number)}\n".encode())
    os._exit(128 + number)


def install(handler: signal._HANDLER, kinds: tuple[int, ...] = _KINDS) -> dict[int, signal._HANDLER]:
    """Set a handler for all that ask us to end, unless our parent had them ignored (nohup).

    Returns:
        What was there before, by signal; empty outside the main thread, whose caller has the signals.
    """
    before: dict[int, signal._HANDLER] = {}
    for kind in kinds:
        old = signal.getsignal(kind)
        if old == signal.SIG_IGN:
            continue
        try:
            signal.signal(kind, handler)
        except ValueError:
            return {}
        before[kind] = old
    return before


@contextmanager
def raised() -> Iterator[list[int]]:
    """Each signal becomes a KeyboardInterrupt, so that what is being written is taken back.

    Yields:
        The numbers of the signals that came.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = install(interrupt)
    try:
        yield came
    finally:
        _restore(before)


@contextmanager
def quitting() -> Iterator[None]:
    """The process ends at once while the body imports; elsewhere than in a command, nothing changes."""
    ours = [kind for kind in _KINDS if getattr(signal.getsignal(kind), "__module__", None) == __name__]
    before = install(quit_at_once, tuple(ours))
    try:
        yield
    finally:
        _restore(before)


def _restore(before: dict[int, signal._HANDLER]) -> None:
    for kind, handler in before.items():
        signal.signal(kind, signal.SIG_DFL if handler is None else handler)
