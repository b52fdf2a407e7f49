"""The marked squeezes, excitations and gates of SE blocks (marks.py) in the row graph."""

from __future__ import annotations

from typing import Any

from ...errors import TiledSEError
from ...tile import Tile
from ..builder import Builder, Ref
from ..gates import excite, scale, squeeze, squeeze_corrected
from .table import Fx, on

# A block's layers, which are not in the trace: this runs them wherever it stands.
EXCITE = "tiledse_stream.excite"


@on("tiledse_stream.squeeze")
def squeezed(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The squeeze of an SE block."""
    ref = _map_of_block(b, fx)
    return squeeze(b, fx, ref, Tile.parse(fx.args[1]), str(fx.args[2]), str(fx.args[3]))  # type: ignore[arg-type]


@on("tiledse_stream.squeeze_corrected")
def corrected(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The squeeze of a calibrated SE block."""
    ref = _map_of_block(b, fx)
    args, _ = b.filled(fx)
    return squeeze_corrected(b, fx, ref, args[1:4], Tile.parse(args[4]), args[5], args[6])


@on(EXCITE)
def excited(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The excitation of an SE block."""
    refs, _ = b.call(fx)
    return excite(b, fx, refs[0], str(fx.args[1]))


@on("tiledse_stream.scale")
def scaled(b: Builder, fx: Fx, pick: Any) -> Ref:
    """The gate of an SE block."""
    refs, _ = b.call(fx)
    _map_of_block(b, fx)
    return scale(b, fx, refs[0], refs[1], Tile.parse(fx.args[2]), str(fx.args[3]))  # type: ignore[arg-type]


def _map_of_block(b: Builder, fx: Fx) -> Ref:
    refs, _ = b.call(fx)
    if b.values[refs[0].index].row_dim != 2:
        raise TiledSEError(
            f"block '{fx.args[-1]}' comes after a layer that takes the whole map and no longer has rows; "
            "it cannot be streamed"
        )
    return refs[0]
