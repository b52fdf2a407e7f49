"""PyTorch networks: which SE blocks they have, and the same networks with tiles."""

from .block import TiledBlock
from .converter import convert
from .dialects import Dialect, Layers, register_dialect
from .finder import find
from .valid import ValidFrames

__all__ = ["Dialect", "Layers", "TiledBlock", "ValidFrames", "convert", "find", "register_dialect"]
