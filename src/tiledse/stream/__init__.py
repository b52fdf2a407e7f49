"""Streaming: the row graph of a network, its exact execution row by row, and its simulation as a pipeline."""

from .executor import Stream, stream

__all__ = ["Stream", "stream"]
