"""Where a block of a statically quantised file keeps its scales: of its map, its descriptors and its gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from .nodes import Miss

if TYPE_CHECKING:
    from .constants import Constants
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


def check_scales(place: Place, constants: Constants) -> None:
    """Check that tiles of a quantised block can take the scale of its map.

    Raises:
        Miss: the map has none, one that is computed, or one a channel.
    """
    scale = scale_of_map(place)
    if scale is None:
        raise Miss(
            "its descriptors are quantised to the range of means over the whole map, which means over tiles leave, "
            "and its map is not, so its own range is not known; tile the float network and quantise that"
        )
    arrays = [constants.array(value) for value in scale if value is not None]
    if any(array is None for array in arrays):
        raise Miss(
            "the scale or zero point of its quantised map is computed, not constant, so the steps of means over tiles "
            "are not known; quantise the network statically"
        )
    if arrays[0] is not None and arrays[0].size != 1:
        raise Miss("its quantised map has a scale for each channel; expected one for all")


def scale_of_gates(place: Place) -> Scale | None:
    """Scale and zero point of the gates of a block, where they are dequantised; None where they are not."""
    maker = place.excitation.gate.producer()
    return tuple(maker.inputs[1:]) if maker is not None and maker.op_type == "DequantizeLinear" else None
