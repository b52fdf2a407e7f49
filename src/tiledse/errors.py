"""The one exception that tells a user what was wrong with the use, and how others become it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .names import one_line


class TiledSEError(Exception):
    """Wrong use: what was expected, what came, and what to do, in one line that a terminal only draws.

    Raised by the public calls. The command line prints its text and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class TiledSEWarning(UserWarning):
    """What a public call did not do of what it was asked, in one line; the rest it did."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """What another library's exception says, cut to one line for use inside our own message.

    Example:
        >>> first_line(ValueError("bad thing\\nand a long story"))
        'bad thing'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Tell what a body raises, whatever it is, as wrong use; for the code of strangers.

    Args:
        what: What did not work; the exception's name and first line are put after it.

    Raises:
        TiledSEError: one of the body's own as it is, any other exception under ``what``.

    Example:
        >>> with told_as("the adapter failed"):
        ...     [][0]
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: the adapter failed: IndexError: list index out of range
    """
    try:
        yield
    except TiledSEError:
        raise
    except Exception as error:
        raise TiledSEError(f"{what}: {type(error).__name__}: {first_line(error)}") from error
