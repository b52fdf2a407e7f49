"""The network of a variant: tiles, no attention, or blocks of the paper's appendix B in place of SE."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..errors import TiledSEError
from ..networks.building import with_excitation, without_attention
from ..networks.converter import convert
from ..networks.finder import find
from ..networks.weights import check_fitting, read_state
from ..plan import Plan
from .sections import Variant


def with_variant(
    model: nn.Module, variant: Variant, input_size: tuple[int, int, int]
) -> tuple[nn.Module, Plan]:
    """The network that a variant trains, and its plan.

    Args:
        model: The network with plain SE.
        variant: What stands where it has SE.
        input_size: (C, H, W).

    Raises:
        TiledSEError: the network has no SE block.
    """
    found = find(model, input_size)
    if not len(found):
        near = len(found.near_misses)
        raise TiledSEError(
            f"the network has no squeeze-and-excite block ({near} near misses; `tiledse find` gives the reasons)"
        )
    if variant.tile == "none":
        model = without_attention(model, found)
    elif variant.kernel is not None or variant.ratio is not None:
        model = with_excitation(model, variant.tile, input_size, variant.kernel or (1, 1), variant.ratio)
    else:
        model = convert(model, found.with_tile(variant.tile))
    # Found again: parameters and MACs are those of the network as it is now.
    return model, find(model, input_size)


def load_fitting(model: nn.Module, path: Path) -> list[str]:
    """Load the weights that fit by name and shape; the head of another number of classes stays as it is.

    Returns:
        The names that were left as they were.

    Raises:
        TiledSEError: the file cannot be read, fits less than half of the parameters, or holds numbers that
            are not finite.
    """
    state, own = read_state(path), model.state_dict()
    state = {key.removeprefix("module."): value for key, value in state.items()}
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    filled = sum(own[key].numel() for key in fitting)
    whole = sum(value.numel() for value in own.values())
    if 2 * filled < whole:
        raise TiledSEError(
            f"the weights {path} do not fit: {filled} of {whole} numbers have the same name and shape; give the "
            "weights of this network or of its backbone"
        )
    check_fitting(fitting, model, path)
    model.load_state_dict(fitting, strict=False)
    return [key for key in own if key not in fitting]
