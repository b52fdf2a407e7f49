"""A figure in a file, and names in it as they are: what matplotlib would take for markup is only drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TiledSEError
from ..extras import missing
from ..files import written_whole
from ..names import shown

_ENDINGS = (".png", ".pdf", ".svg")
# A user's matplotlibrc may send all text through TeX, which runs what a name says.
_OWN = {"text.usetex": False, "svg.hashsalt": "tiledse"}
_LONGEST_NAME = 60

# Okabe and Ito's colours: those who see colours otherwise tell them apart; marks, dashes and hatches tell what is
# printed in black and white apart.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"


@contextmanager
def figure(
    path: str | Path, width: float, height: float, style: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """A figure of this size in inches, written when the body is done.

    Args:
        path: A name that ends in .png, .pdf or .svg.
        width: In inches.
        height: In inches.
        style: Matplotlib's rcParams.

    Raises:
        TiledSEError: another ending, matplotlib is not installed, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _ENDINGS:
        raise TiledSEError(f"cannot draw {path}: expected a name that ends in .png, .pdf or .svg")
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("figures need", "matplotlib", error=error) from error
    with mpl.rc_context({**(style or {}), **_OWN}), warnings.catch_warnings():
        # A letter of a name that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        # Names may leave no room for a layout; the figure is drawn all the same.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made
        with written_whole(path) as part:
            made.savefig(part)


def as_drawn(name: object) -> str:
    r"""A name, as text that matplotlib draws letter by letter: harmless, cut, and without formulas.

    Example:
        >>> as_drawn("net$_{x}$\n")
        'net\\$_{x}\\$␊'
    """
    return shown(name, _LONGEST_NAME).replace("$", r"\$")
