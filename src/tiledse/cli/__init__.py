"""The command line: one verb is one function, and its docstring is the help."""

from . import bench, context, demo, evaluate, networks, paper  # noqa: F401  (each module adds its verbs to the app)
from .app import app, main

__all__ = ["app", "main"]
