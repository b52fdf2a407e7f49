"""The code of strangers that a user names: imported from the working folder first, then from what is installed."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ..errors import TiledSEError, first_line


def import_named(text: str, what: str, expected: str) -> Any:
    """What ``package.module:name`` names; importing it runs its code.

    Args:
        text: The module, a colon, and a name in it.
        what: What it is to be, for the message: ``the adapter``.
        expected: What is to be done instead, for the message.

    Raises:
        TiledSEError: there is no such module or name, or its code fails, or would end the process.

    Example:
        >>> import_named("math:tau", "", "")
        6.28...
        >>> import_named("nowhere:adapter", "the adapter", "package.module:adapter")
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: cannot import the adapter 'nowhere:adapter': No module named 'nowhere'; ...
    """
    path, _, name = text.partition(":")
    about = f"cannot import {f'{what} ' if what else ''}'{text}'"
    if not all(part.isidentifier() for part in path.split(".")):
        raise TiledSEError(f"{about}: '{path}' is no name of a module; expected {expected}")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(path), name)
    except SystemExit as error:
        raise TiledSEError(
            f"{about}: it would end the process with {error.code!r} when it is imported"
        ) from error
    except Exception as error:  # a module may raise anything
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise TiledSEError(f"{about}: {kind}{first_line(error)}; expected {expected}") from error
    finally:
        sys.path.remove("")


def call_named(function: Any, text: str, *arguments: Any) -> Any:
    """What a stranger's function gives.

    Raises:
        TiledSEError: it fails, or would end the process.
    """
    try:
        return function(*arguments)
    except TiledSEError:
        raise
    except SystemExit as error:
        raise TiledSEError(f"{text}() would end the process with {error.code!r}") from error
    except Exception as error:
        raise TiledSEError(f"{text}() failed: {type(error).__name__}: {first_line(error)}") from error
