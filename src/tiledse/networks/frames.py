"""Frames of a stream: blocks that are gated by the mean of the previous frame's map, and their states.

A state is a buffer of the block that is not in its state_dict: means of the last map of each stream of the batch, of
the whole map for ``HxW:previous``, (N, C), and of its rows for strips, (N, C, H). NaN stands for a stream without a
frame: its next one is gated by the rows that have come (``Tile.first``). So a stream of a batch begins again by NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ..errors import TiledSEError
from ..op.functional import direct, scale, squeeze
from ..op.grids import accumulation_type, is_eager, shares_of_frames
from ..tile import Tile

STATE = "_tiledse_previous"
_FRAME = "_tiledse_frame"  # the shape of the last map
_AGAIN = "a stream keeps its size and its batch; call ts.reset_frames(network) where another stream begins"
_ROWS = Tile(1, None)


def begin(block: nn.Module) -> None:
    """Give a block the state of streams that have had no frame."""
    block.register_buffer(STATE, None, persistent=False)
    block.__dict__[_FRAME] = None


def begin_all(model: nn.Module) -> nn.Module:
    """The same network, its streams without a frame; one without states is left as it is."""
    for module in model.modules():
        if STATE in module._buffers:
            begin(module)
    return model


def forget(block: nn.Module) -> None:
    """Take the state from a block."""
    block._buffers.pop(STATE, None)
    block._non_persistent_buffers_set.discard(STATE)
    block.__dict__.pop(_FRAME, None)


def gated(
    block: nn.Module, x: Tensor, tile: Tile, excite: Callable[[Tensor], Tensor], inplace: bool = False
) -> Tensor:
    """Scale the maps of a frame by the gates of the frame before, and keep their means for the next one.

    Args:
        block: Keeps the state.
        x: Maps, (N, C, H, W): one frame of each of N streams.
        tile: A tile with ``previous``.
        excite: Descriptors (N, C, rows, cols) to gates.
        inplace: Write into x.

    Returns:
        (N, C, H, W).

    Raises:
        TiledSEError: the block is trained or traced, or the maps are not of the shape of the last frame's.
    """
    _check(block, x, tile)
    rows = x.mean(3)
    if not is_eager(x) and not torch.compiler.is_compiling():
        _check_shapes_alone(x, tile)
        # Shapes alone (fake or meta tensors): what frames after the first compute, and nothing is kept.
        return scale(x, excite(descriptors(rows, tile, kept(rows, tile))), _grid(tile, x))
    before = getattr(block, STATE)
    new = kept(rows.detach(), tile)
    unknown = (
        None
        if before is None
        else before.flatten(2)[:, :, 0].isnan()
        if before.dim() == 3
        else before.isnan()
    )
    if unknown is None:
        made, grid = squeeze(x, tile.first), tile.first
    elif unknown.any():
        known = descriptors(rows, tile, before.nan_to_num(0.0))
        made, grid = torch.where(unknown[:, :, None, None], squeeze(x, tile.first), known), tile.first
    else:
        made, grid = descriptors(rows, tile, before), _grid(tile, x)
    y = scale(x, direct(excite, x)(made), grid, inplace=inplace)
    with torch.inference_mode(False):  # a later frame may record gradients
        block._buffers[STATE] = new.clone()
    block.__dict__[_FRAME] = tuple(x.shape)
    return y


def kept(rows: Tensor, tile: Tile) -> Tensor:
    """The state that a frame leaves: the mean of its map (N, C), or of each row (N, C, H), from the means of rows."""
    return rows.mean(2) if tile.height is None else rows


def descriptors(rows: Tensor, tile: Tile, before: Tensor) -> Tensor:
    """Descriptors of a frame that had one before it.

    Args:
        rows: Means of the rows of its maps, (N, C, H).
        tile: A tile with ``previous``.
        before: What the frame before left, see ``kept``.

    Returns:
        (N, C, rows of the grid, 1), in the type of ``rows``.

    Example:
        >>> rows, before = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[10.0, 20.0]]])
        >>> descriptors(rows, Tile.parse("1xW:previous"), before).flatten().tolist()
        [10.5, 2.0]
        >>> descriptors(rows, Tile.parse("HxW:previous"), torch.tensor([[15.0]])).flatten().tolist()
        [15.0]
    """
    if tile.height is None:
        return before[:, :, None, None].to(rows.dtype)
    wide = accumulation_type(rows.dtype)
    this, last = shares_of_frames(tile, int(rows.shape[2]), rows, wide)
    return (rows.to(wide) @ this.t() + before.to(wide) @ last.t())[..., None].to(rows.dtype)


def _grid(tile: Tile, x: Tensor) -> Tile:
    """Which rows each of those descriptors scales."""
    return Tile(int(tile.size(int(x.shape[2]), 1)[0]), None)


def _check(block: nn.Module, x: Tensor, tile: Tile) -> None:
    if isinstance(x, fx.Proxy) or torch.compiler.is_exporting() or torch.jit.is_tracing():
        raise TiledSEError(
            f"a block with {tile} keeps the mean of its last map, which a trace of one call does not; convert an ONNX "
            "file of the SE network, whose states are inputs and outputs"
        )
    if block.training:
        raise TiledSEError(
            f"a block with {tile} runs on the frames of a stream, in eval mode; call eval() on the network, and train "
            "it with HxW or 1xW:running"
        )
    if getattr(block, "_is_replica", False):
        raise TiledSEError(
            f"a block with {tile} keeps a state, which DataParallel's copies lose; run each stream on one device"
        )
    if x.dim() != 4 or 0 in x.shape[2:]:
        raise TiledSEError(f"expected a map of shape (N, C, H, W), got {tuple(x.shape)}")
    last, before = vars(block).get(_FRAME), getattr(block, STATE)
    if last is not None and last != tuple(x.shape):
        raise TiledSEError(f"a block got a map of {tuple(x.shape)} after one of {last}; {_AGAIN}")
    if last is None and before is not None and before.shape != x.shape[: before.dim()]:
        raise TiledSEError(
            f"a block got a map of {tuple(x.shape)}, but its state is of {tuple(before.shape)}; {_AGAIN}"
        )


def _check_shapes_alone(x: Tensor, tile: Tile) -> None:
    from torch._subclasses.fake_tensor import FakeTensor

    if not (x.is_meta or isinstance(x, FakeTensor)):
        raise TiledSEError(
            f"a block with {tile} keeps a state, which transforms of torch.func, forward-mode gradients and "
            f"subclasses of Tensor ({type(x).__name__}) do not carry; call the network on plain tensors"
        )


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    found = [(name, module) for name, module in model.named_modules() if STATE in module._buffers]
    if not found:
        raise TiledSEError(
            "no block of this network keeps a state from frame to frame; convert it with HxW:previous, or leave it out"
        )
    yield from found


def reset_frames(model: nn.Module, streams: Sequence[int] | None = None) -> None:
    """Begin another stream: the next frame has no frame before it.

    Args:
        model: A network with ``previous`` tiles.
        streams: Numbers of the streams of the batch that begin again; all, and with any batch and size, if left out.

    Raises:
        TiledSEError: no block has such a tile, no frame has come yet, or there is no such stream.

    Example:
        >>> import timm, tiledse as ts
        >>> model = timm.create_model("lcnet_050").eval()
        >>> video = ts.convert(model, ts.find(model, (3, 64, 64)).with_tile("HxW:previous"))
        >>> with torch.no_grad():
        ...     _ = video(torch.randn(2, 3, 64, 64))  # a frame of each of two streams
        >>> reset_frames(video, [1])
        >>> frame_states(video)["blocks.5.0.se"].isnan().all(1).tolist()
        [False, True]
    """
    for name, block in _blocks(model):
        if streams is None:
            begin(block)
            continue
        state = getattr(block, STATE)
        if state is None:
            raise TiledSEError(
                "no frame has come yet, so there is no stream to begin again; leave streams out"
            )
        wrong = [s for s in streams if not (isinstance(s, int) and 0 <= s < len(state))]
        if wrong:
            raise TiledSEError(
                f"block '{name}' runs on {len(state)} streams: expected numbers of 0 to {len(state) - 1}, "
                f"got {wrong[0]!r}"
            )
        state = state.clone()
        state[list(streams)] = float("nan")
        block._buffers[STATE] = state


def frame_states(model: nn.Module) -> dict[str, Tensor]:
    """The states of a network between two frames, to go on with later or elsewhere.

    Args:
        model: A network with ``previous`` tiles.

    Returns:
        By name of the block, of the last map of each stream: the mean (N, C) for ``HxW:previous``, those of its rows
        (N, C, H) for strips; NaN for a stream that begins. Copies. Empty where no frame has come.

    Raises:
        TiledSEError: no block has such a tile.
    """
    return {
        name: state.clone() for name, block in _blocks(model) if (state := getattr(block, STATE)) is not None
    }


def set_frame_states(model: nn.Module, states: Mapping[str, Tensor]) -> None:
    """Go on with streams whose states ``frame_states`` gave.

    Args:
        model: A network with ``previous`` tiles.
        states: By name of the block.

    Raises:
        TiledSEError: they are not those of this network's blocks, or are of different batches.
    """
    blocks = dict(_blocks(model))
    if set(states) != set(blocks):
        other = sorted(set(states) ^ set(blocks))[0]
        raise TiledSEError(
            f"states of other blocks: '{other}' is in one and not in the other; give what frame_states gave on "
            "this network"
        )
    sizes = {name: tuple(state.shape) for name, state in states.items()}
    axes = {name: 2 if vars(block)["tiledse"].tile.height is None else 3 for name, block in blocks.items()}
    if len({size[:1] for size in sizes.values()}) != 1 or any(len(sizes[n]) != axes[n] for n in axes):
        raise TiledSEError(f"expected states of {axes} axes and of the same batch, got {sizes}")
    for name, block in blocks.items():
        begin(block)
        like = next(block.parameters(), states[name])
        block._buffers[STATE] = states[name].detach().to(like.device, copy=True)
