"""What a reader may do with a damaged file: refuse it in one harmless line, or read it to finite numbers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiledse.errors import TiledSEError
from tiledse.names import LONGEST_LINE

SLOWEST_S = 10.0  # of processor time; the machine may be busy
LARGEST_BYTES = 600 << 20  # above what the largest image that Pillow opens without a warning takes


@dataclass(frozen=True)
class Outcome:
    """How one input ended.

    Args:
        kind: ``read``, ``refused``, or what was wrong: ``traceback``, ``escape``, ``not finite``, ``unclear``,
            ``slow``, ``memory``.
        text: The refusal, or what was wrong.
    """

    kind: str
    text: str = ""

    @property
    def wrong(self) -> bool:
        return self.kind not in ("read", "refused")


def judge(read: Callable[[Path], Any], path: Path) -> Outcome:
    """Read a file, and judge the line or the result that comes of it."""
    before, started = _peak_bytes(), time.process_time()
    with _captured() as printed:
        try:
            result = read(path)
            refusal = None
        except TiledSEError as error:
            refusal = str(error)
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)
            place = next(
                (f for f in reversed(trace) if "tiledse" in f.filename and "fuzz" not in f.filename),
                trace[-1],
            )
            where = f"{Path(place.filename).name}:{place.lineno}"
            return Outcome("traceback", f"{type(error).__name__} at {where}: {str(error)[:200]!r}")
    took, grown = time.process_time() - started, _peak_bytes() - before
    text = printed[0]
    if refusal is not None:
        if "\n" in refusal or len(refusal) > LONGEST_LINE or len(refusal) < 15:
            return Outcome("unclear", repr(refusal[:200]))
        text += refusal
    if obeyed := [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]:
        return Outcome("escape", f"{obeyed[0]!r} in {text[:200]!r}")
    if took > SLOWEST_S:
        return Outcome("slow", f"{took:.1f} s")
    if grown > LARGEST_BYTES:
        return Outcome("memory", f"{grown >> 20} MiB")
    if refusal is not None:
        return Outcome("refused", refusal)
    if (odd := not_finite(result)) is not None:
        return Outcome("not finite", odd)
    return Outcome("read")


def not_finite(value: Any, name: str = "result") -> str | None:
    """The first number of a result that is not finite, by its place; None where all are."""
    if isinstance(value, torch.Tensor):
        good = not value.is_floating_point() or bool(value.isfinite().all())
        return None if good else name
    if isinstance(value, np.ndarray):
        return None if value.dtype.kind not in "fc" or bool(np.isfinite(value).all()) else name
    if isinstance(value, (float, np.floating)):
        return None if np.isfinite(value) else f"{name} = {value}"
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    entries = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    return next(
        (odd for key, entry in entries if (odd := not_finite(entry, f"{name}.{str(key)[:40]}"))), None
    )


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """What Python prints, what loggers say, and what libraries in C write past Python."""
    held: list[str] = [""]
    out = io.StringIO()
    logs = logging.StreamHandler(out)
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        logging.getLogger().addHandler(logs)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
                # They pass through formatwarning in a command, which has a test of its own.
                warnings.simplefilter("ignore")
                yield held
        finally:
            logging.getLogger().removeHandler(logs)
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            held[0] = out.getvalue() + file.read().decode("utf-8", "surrogateescape")
