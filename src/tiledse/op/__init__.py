"""The operator: tiled squeeze-and-excite as a function and as a module."""

from .choosing import explain, kernels
from .functional import scale, squeeze, tiled_squeeze_excite
from .module import TiledSqueezeExcite

__all__ = ["TiledSqueezeExcite", "explain", "kernels", "scale", "squeeze", "tiled_squeeze_excite"]
