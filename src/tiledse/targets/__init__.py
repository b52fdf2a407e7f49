"""Targets: what compilers and runtimes take of an SE block, one small file each."""

from .measured import Measured
from .opening import DEFAULT, load, names
from .target import Target

__all__ = ["DEFAULT", "Measured", "Target", "load", "names"]
