"""Targets: what compilers and runtimes take of an SE block, one small file each."""

from .measured import Measured, beyond_two_step
from .opening import DEFAULT, load, names
from .target import Target

__all__ = ["DEFAULT", "Measured", "Target", "beyond_two_step", "load", "names"]
