"""Tiled squeeze-and-excite: trained SE networks that stream.

Example:
    >>> import timm, tiledse as ts
    >>> model = timm.create_model("regnety_008")
    >>> plan = ts.find(model, (3, 224, 224)).with_tile("7xW")
    >>> tse = ts.convert(model, plan)
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import TiledSEError, TiledSEWarning

if TYPE_CHECKING:
    from .cost import Cost, SECost, TSECost
    from .network import Form, Network
    from .networks import Dialect, Layers, TiledBlock, ValidFrames, register_dialect
    from .networks.frames import frame_states, reset_frames, set_frame_states
    from .op import TiledSqueezeExcite, explain, kernels, tiled_squeeze_excite
    from .opening import open
    from .plan import NearMiss, Plan, SEBlock, Totals
    from .report.page import report
    from .stream import Hardware, Simulation, Stream, simulate, stream
    from .stream.step.exporting import export_step
    from .stream.step.runner import StepRunner
    from .tile import Tile
    from .verbs import convert, cost, find, search, verify
    from .writing import write

__all__ = [
    "Cost",
    "Dialect",
    "Form",
    "Hardware",
    "Layers",
    "NearMiss",
    "Network",
    "Plan",
    "SEBlock",
    "SECost",
    "Simulation",
    "StepRunner",
    "Stream",
    "TSECost",
    "Tile",
    "TiledBlock",
    "TiledSEError",
    "TiledSEWarning",
    "TiledSqueezeExcite",
    "Totals",
    "ValidFrames",
    "advise",
    "calibrate",
    "convert",
    "correlate",
    "cost",
    "evaluate",
    "explain",
    "export_step",
    "find",
    "frame_states",
    "kernels",
    "open",
    "open_images",
    "register_dialect",
    "report",
    "reset_frames",
    "search",
    "sensitivity",
    "set_frame_states",
    "simulate",
    "stream",
    "sweep",
    "tiled_squeeze_excite",
    "verify",
    "write",
]

# Where each name lives. A room is loaded when a name of it is first asked for, so that the command line
# prints its help without loading torch.
_HOMES = {
    **dict.fromkeys(("Cost", "SECost", "TSECost"), ".cost"),
    **dict.fromkeys(("Dialect", "Layers", "TiledBlock", "ValidFrames", "register_dialect"), ".networks"),
    **dict.fromkeys(("TiledSqueezeExcite", "explain", "kernels", "tiled_squeeze_excite"), ".op"),
    **dict.fromkeys(("NearMiss", "Plan", "SEBlock", "Totals"), ".plan"),
    **dict.fromkeys(("Hardware", "Simulation", "Stream", "simulate"), ".stream"),
    **dict.fromkeys(("convert", "find", "search", "verify"), ".verbs"),
    **dict.fromkeys(("Form", "Network"), ".network"),
    "Tile": ".tile",
    "advise": ".choose.advising",
    "calibrate": ".choose.calibration",
    "correlate": ".context.correlation",
    "StepRunner": ".stream.step.runner",
    **dict.fromkeys(("frame_states", "reset_frames", "set_frame_states"), ".networks.frames"),
    "export_step": ".stream.step.exporting",
    "open": ".opening",
    "open_images": ".data.opening",
    "sensitivity": ".context.sensitivity",
    "sweep": ".context.sweep",
    "write": ".writing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)  # a room: ts.networks
    raise AttributeError(f"module 'tiledse' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package. A verb stays the verb, though the room that it lives in has the same name."""


def _verb(name: str, home: str) -> property:
    def function(self: ModuleType) -> Any:
        return getattr(import_module(home, __name__), name)

    def keep(self: ModuleType, room: ModuleType) -> None:
        """The import system puts the room here once it is loaded."""

    return property(function, keep)


_SHARED_NAMES = {
    "cost": ".verbs",
    "evaluate": ".evaluate.comparison",
    "report": ".report.page",
    "stream": ".stream",
}
for _name, _home in _SHARED_NAMES.items():
    setattr(_Package, _name, _verb(_name, _home))
sys.modules[__name__].__class__ = _Package
