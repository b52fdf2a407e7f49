"""Where a block of a statically quantised file keeps its scales: of its map, its descriptors and its gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from .finder import Place

Scale = tuple["ir.Value | None", ...]


def quantised(place: Place) -> bool:
    """Whether the descriptors of a block are quantised."""
    return first_quantised(place) is not None


def first_quantised(place: Place) -> ir.Node | None:
    """The node that quantises the descriptors of a block; None where they stay floating numbers."""
    users = [use.node for use in place.squeeze.descriptors.uses()]
    return next((n for n in users if n.op_type == "QuantizeLinear"), None)


def scale_of_map(place: Place) -> Scale | None:
    """Scale and zero point of the map of a block, where it is dequantised; None where it is not."""
    for value in (place.squeeze.source, place.product.inputs[1 - place.slot]):
        maker = None if value is None else value.producer()
        if maker is not None and maker.op_type == "DequantizeLinear":
            return tuple(maker.inputs[1:])
    return None


def scale_of_gates(place: Place) -> Scale | None:
    """Scale and zero point of the gates of a block, where they are dequantised; None where they are not."""
    maker = place.excitation.gate.producer()
    return tuple(maker.inputs[1:]) if maker is not None and maker.op_type == "DequantizeLinear" else None
