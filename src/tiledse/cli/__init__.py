"""The command line: one verb is one function, and its docstring is the help."""

# Each module adds its verbs to the app.
from . import bench, choose, context, demo, evaluate, networks, paper, stream, train, zoo  # noqa: F401
from .app import app, main

__all__ = ["app", "main"]
