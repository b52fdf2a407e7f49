"""The command line: one verb is one function, and its docstring is the help."""

from . import bench, demo, evaluate, networks, paper, stream  # noqa: F401  (each module adds its verbs)
from .app import app, main

__all__ = ["app", "main"]
