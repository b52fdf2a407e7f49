"""Packages that not everybody needs: the one line that installs a missing one, wherever tiledse itself came from."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from .errors import TiledSEError, first_line


def missing(need: str, *packages: str, error: ImportError | None = None) -> TiledSEError:
    """The error that says which packages are missing, and the line that installs them.

    The line names the packages with the releases that tiledse asks for, and no extra of tiledse, which would have to be
    on an index. So it is the same line in a clone, with a wheel and offline from a mirror.

    Args:
        need: Who needs them, as the start of a sentence: "figures need".
        packages: Their names on the index.
        error: What importing them raised; told where it is another reason than that one of them is absent.

    Example:
        >>> print(missing("figures need", "matplotlib"))
        figures need the package matplotlib; install it with: ...pip install 'matplotlib>=3.10.7'
    """
    several = len(packages) > 1
    absent = error is None or (isinstance(error, ModuleNotFoundError) and error.name in packages)
    reason = "" if absent else f" ({first_line(error)})"  # type: ignore[arg-type]  # not None where it is no absence
    return TiledSEError(
        f"{need} the package{'s' * several} {' and '.join(packages)}{reason}; install {'them' if several else 'it'} "
        f"with: {installer()} {' '.join(shlex.quote(requirement(name)) for name in packages)}"
    )


def check_installed(need: str, *packages: str) -> None:
    """Check that packages are there, without loading them: before the work that ends with them begins.

    Args:
        need: See ``missing``.
        packages: Their names, on the index and in Python.

    Raises:
        TiledSEError: one is not; see ``missing``.
    """
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise missing(need, *absent)


def requirement(package: str) -> str:
    """A package with the releases that tiledse asks for, as pip takes it; its bare name where nothing says them.

    Example:
        >>> requirement("matplotlib").startswith("matplotlib>=")
        True
        >>> requirement("nowhere")
        'nowhere'
    """
    try:
        lines = requires("tiledse") or []
    except PackageNotFoundError:  # sources on PYTHONPATH, never installed
        lines = []
    for line in lines:
        text = line.partition(";")[0].strip()
        name = re.match(r"[\w.-]+", text)
        if name is not None and re.sub(r"[-_.]+", "-", name[0]).lower() == package.replace("_", "-").lower():
            return text
    return package


def installer() -> str:
    """How packages are put beside this tiledse: pip of the Python that runs it, or uv where that has no pip."""
    python = shlex.quote(sys.executable)
    if find_spec("pip") is None and shutil.which("uv") is not None:
        return f"uv pip install --python {python}"
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found is not None and Path(found).absolute() == Path(sys.executable).absolute():
            python = name
            break
    return f"{python} -m pip install"
