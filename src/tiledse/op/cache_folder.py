"""Where a built library may be loaded from: a folder that nobody else can write, and a file that is our own.

Loading a library runs its code. A cache in a shared folder, or one that another user made first, could hold theirs.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(cache: Path) -> tuple[Path, str | None]:
    """The cache, made for the owner only where it is not there yet.

    Args:
        cache: The folder.

    Returns:
        The folder, and None; or a folder for this process alone, and what is wrong with the cache.

    Raises:
        OSError: it cannot be made.

    Example:
        >>> folder = Path(tempfile.mkdtemp()) / "cache"
        >>> private_folder(folder)[1], oct(folder.stat().st_mode & 0o777)
        (None, '0o700')
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache = cache.resolve()
    status = cache.stat()
    if status.st_uid != os.getuid():
        return _folder_of_process(), f"{cache} belongs to another user"
    if status.st_mode & _OTHERS_WRITE:
        return _folder_of_process(), f"other users can write to {cache}"
    return cache, None


def is_own_file(path: Path) -> bool:
    """Whether a file is there, is ours, has no other name, is no link, and nobody else can write it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.getuid()
        and status.st_nlink == 1
        and not status.st_mode & _OTHERS_WRITE
    )


@lru_cache(maxsize=1)
def _folder_of_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiledse-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
