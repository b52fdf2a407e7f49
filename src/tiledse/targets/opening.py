"""Targets by name, or from a file of one's own."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from ..documents import read_toml
from ..errors import TiledSEError, first_line
from .target import Target

# The form that is written where no target is asked for.
DEFAULT = "onnxruntime"


def names() -> tuple[str, ...]:
    """The targets that come with tiledse, each a small file in its folder; the default first.

    Example:
        >>> names()
        ('onnxruntime', 'ethos-u', 'generic', 'hailo', 'ncnn', 'openvino', 'rockchip', 'sophgo', 'tensorrt')
    """
    found = sorted(
        entry.name.removesuffix(".toml")
        for entry in files(__package__).iterdir()
        if entry.name.endswith(".toml")
    )
    return (DEFAULT, *(name for name in found if name != DEFAULT))


def load(target: str | Path | Target) -> Target:
    """A target by its name, or of a TOML file; a ``Target`` is given back as it is.

    Args:
        target: One of ``names()``, or a file that ends in ``.toml``, whose keys are those of ``Target``.

    Raises:
        TiledSEError: no such target, or a file that is none.

    Example:
        >>> load("ethos-u").resize
        (2, 4, 8)
        >>> load("ethos")
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: no target 'ethos'; expected one of onnxruntime, ethos-u, ... or a file NAME.toml
    """
    if isinstance(target, Target):
        return target
    if str(target).lower().endswith(".toml"):
        return _read(Path(target))
    if target not in names():
        raise TiledSEError(f"no target '{target}'; expected one of {', '.join(names())}, or a file NAME.toml")
    return _named(str(target))


@cache
def _named(name: str) -> Target:
    text = files(__package__).joinpath(f"{name}.toml").read_text("utf-8")
    return Target.from_dict(read_toml(text), name)


def _read(path: Path) -> Target:
    try:
        content = read_toml(path.read_text("utf-8"))
    except OSError as error:
        raise TiledSEError(f"cannot read target {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise TiledSEError(f"{path} is no target: {first_line(error)}; expected TOML") from error
    return Target.from_dict(content, path.stem)
