"""What a network is run on: one image of a size, or whatever the user gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import TiledSEError

Size = tuple[int, ...]


class Inputs(NamedTuple):
    """One call of a network.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        size: (C, H, W) of the first image among them; (C, T) of sound, (C, D, H, W) of volumes and video.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: Size

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with other tensors."""
        args, kwargs = tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, self[:2])
        return Inputs(args, kwargs, self.size)


def inputs_for(model: nn.Module, input_size: Sequence[int] | None, example_inputs: Any = None) -> Inputs:
    """What to call a network with.

    Args:
        model: The network.
        input_size: (C, H, W) of an image; left out, it is that of the example, or the one that timm gave the network.
        example_inputs: A tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

    Raises:
        TiledSEError: no size is known, there is no image in the example, or the network takes other arguments.
    """
    if example_inputs is None:
        size = _input_size(model, input_size)
        parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        # A zero that is repeated: an image without memory, of which a run on shapes alone sees no more.
        image = torch.zeros((1,) * (len(size) + 1), dtype=parameter.dtype).expand(1, *size)
        inputs = Inputs((image,), {}, size)
    else:
        args, kwargs = _call(example_inputs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        images = [t for t in tensors if t.dim() == 4] or [t for t in tensors if t.dim() in (3, 5)]
        if not images:
            raise TiledSEError(
                "example_inputs hold no image: expected a tensor of (N, C, H, W) among them, or (N, C, T) of sound, "
                "(N, C, D, H, W) of volumes and video"
            )
        size = tuple(map(int, images[0].shape[1:]))
        if input_size is not None and tuple(input_size) != size:
            raise TiledSEError(
                f"input_size is {tuple(input_size)}, but the first image of example_inputs is {size}; give one of them"
            )
        inputs = Inputs(args, kwargs, size)
    _check_call(model, inputs)
    return inputs


def _call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    return (example,), {}


def _check_call(model: nn.Module, inputs: Inputs) -> None:
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # a forward without one says so when it is called
        return
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise TiledSEError(
            f"the network's forward takes {signature}: {error}; give all of them with "
            "find(model, example_inputs=...): a tuple, or a dict of keywords"
        ) from None


def _input_size(model: nn.Module, size: Sequence[int] | None) -> Size:
    if size is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        size = config.get("input_size")
        if size is None:
            raise TiledSEError("the network does not say which input it takes; give input_size as (C, H, W)")
    if not 2 <= len(size) <= 4 or any(not isinstance(side, int) or side < 1 for side in size):
        raise TiledSEError(
            "expected an input size of (C, H, W), such as (3, 224, 224), or of (C, T), (C, D, H, W), "
            f"got {tuple(size)}"
        )
    return tuple(map(int, size))
