"""Files and folders that one process at a time may change.

By ``filelock``, which torch brings along: it knows what Windows and network file systems need, and the system frees its
lock when a process is killed. The empty lock file stays, for removing it would let two processes hold two locks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import TiledSEError

_PATIENCE_S = 60.0


@contextmanager
def locked(path: Path, patience_s: float = _PATIENCE_S, busy: str = "") -> Iterator[None]:
    """Change a file, or what is in a folder, alone.

    Args:
        path: The file, or a name in the folder; the lock is ``.NAME.lock`` beside it.
        patience_s: Seconds to wait for another process that holds it.
        busy: What to say if that is too short.

    Raises:
        TiledSEError: another process still holds it, or there can be no lock file.

    Example:
        >>> import tempfile
        >>> with locked(Path(tempfile.mkdtemp()) / "sweep.csv"):
        ...     pass
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=patience_s)
    try:
        lock.acquire()
    except Timeout:
        raise TiledSEError(
            busy or f"another process has held {path} for {patience_s:.0f} seconds; wait for it"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise TiledSEError(f"cannot lock {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield
    finally:
        lock.release()
