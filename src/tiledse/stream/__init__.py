"""Streaming: the row graph of a network, its exact execution row by row, and its simulation as a pipeline."""

from .executor import Stream, stream
from .flow import Held, count_held
from .hardware import Hardware
from .simulator import Simulation, simulate

__all__ = ["Hardware", "Held", "Simulation", "Stream", "count_held", "simulate", "stream"]
