"""Tiled squeeze-and-excite: trained SE networks that stream.

Example:
    >>> import timm, tiledse as ts
    >>> model = timm.create_model("regnety_008")
    >>> plan = ts.find(model, (3, 224, 224)).with_tile("7xW")
    >>> tse = ts.convert(model, plan)
"""

from importlib import import_module
from typing import Any

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
    "calibrate",
    "convert",
    "correlate",
    "cost",
    "evaluate",
    "find",
    "open_images",
    "register_dialect",
    "sensitivity",
    "simulate",
    "stream",
    "sweep",
    "tiled_squeeze_excite",
]

# Verbs whose rooms load more than torch come when they are first asked for.
_ON_DEMAND = {
    "calibrate": ".choose.calibration",
    "correlate": ".measure.correlation",
    "evaluate": ".measure.accuracy",
    "open_images": ".measure.images",
    "sensitivity": ".measure.sensitivity",
    "sweep": ".measure.sweep",
}


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name], __name__), name)
    raise AttributeError(f"module 'tiledse' has no attribute '{name}'")
