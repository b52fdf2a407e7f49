"""The command line: one verb is one function, and its docstring is the help."""

from . import (  # noqa: F401  (each module adds its verbs to the app)
    bench,
    choose,
    context,
    demo,
    evaluate,
    networks,
    paper,
    stream,
)
from .app import app, main

__all__ = ["app", "main"]
