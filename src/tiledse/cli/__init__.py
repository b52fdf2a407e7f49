"""The command line: one verb is one function, and its docstring is the help."""

from .app import app, main

__all__ = ["app", "main"]
