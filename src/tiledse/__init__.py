"""Tiled squeeze-and-excite: trained SE networks that stream.

Example:
    >>> import timm, tiledse as ts
    >>> model = timm.create_model("regnety_008")
    >>> plan = ts.find(model, (3, 224, 224)).with_tile("7xW")
    >>> tse = ts.convert(model, plan)
"""

from .errors import TiledSEError
from .measure import Cost, cost
from .networks import Dialect, Layers, TiledBlock, convert, find, register_dialect
from .op import TiledSqueezeExcite, tiled_squeeze_excite
from .plan import NearMiss, Network, Plan, SEBlock
from .stream import Hardware, Simulation, Stream, simulate, stream
from .tile import Tile

__all__ = [
    "Cost",
    "Dialect",
    "Hardware",
    "Layers",
    "NearMiss",
    "Network",
    "Plan",
    "SEBlock",
    "Simulation",
    "Stream",
    "Tile",
    "TiledBlock",
    "TiledSEError",
    "TiledSqueezeExcite",
    "convert",
    "cost",
    "find",
    "register_dialect",
    "simulate",
    "stream",
    "tiled_squeeze_excite",
]
