"""The formats that are read: for each a sound file, a way to damage it, and the reader as a verb calls it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from .mutate import Dice

FORMATS: dict[str, type[Format]] = {}


class Format(ABC):
    """One kind of file.

    Args:
        folder: An empty folder of its own.

    Attributes:
        name: Of the format.
        file: The name that its files have.
    """

    name: ClassVar[str]
    file: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "name"):
            FORMATS[cls.name] = cls

    @property
    def path(self) -> Path:
        """Where the file is read from."""
        return self.folder / self.file

    @abstractmethod
    def sound(self, dice: Dice) -> bytes:
        """A file that can be read."""

    @abstractmethod
    def damaged(self, data: bytes, dice: Dice) -> bytes:
        """The file after somebody changed it."""

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Read it, and give every number that came of it."""


def opened(name: str, folder: Path) -> Format:
    """A format by name, in a folder of its own."""
    from . import images, networks, results, tables  # noqa: F401  (each adds its formats)

    folder.mkdir(parents=True, exist_ok=True)
    return FORMATS[name](folder)


def names() -> list[str]:
    """All formats."""
    from . import images, networks, results, tables  # noqa: F401

    return sorted(FORMATS)


def case(kind: Format, seed: int, number: int) -> bytes:
    """Input ``number`` of a seed: always the same bytes."""
    dice = Dice(f"{kind.name}:{seed}:{number}")
    data = kind.sound(dice)
    # One in fifty stays sound, so that a reader which refuses everything is noticed.
    return data if dice.random() < 0.02 else kind.damaged(data, dice)
