"""Try a dialect on a block: numbers decide, with the block's own weights and with random ones."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import first_line
from .counting import MacCounter
from .dialects import Dialect
from .duplicating import deep_copy
from .inline_block import holder
from .modes import in_eval
from .own_forward import NotItsMap, OwnForward
from .reasons import NoBlock
from .value_reads import ValueReads

_TILES = (2, 2)
_SMALL = {1: (9,), 2: (4, 5), 3: (3, 4, 2)}
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Weights = Literal["own", "random"]


def verify(block: nn.Module, dialect: Dialect, shape: tuple[int, ...]) -> None:
    """Check that a dialect gives, on each of several tiles, what the block gives on that tile alone.

    Weights that hide a difference, such as layers that begin at zero, are tried beside random ones; weights without
    numbers (meta, fake) are random ones only. The block itself is not run.

    Args:
        block: The block.
        dialect: Of it, to be checked.
        shape: Of the map that it was called on.

    Raises:
        NoBlock: the numbers differ, or nothing could be run.
    """
    failure: Exception = RuntimeError()
    ran = False
    for weights in _weights(block):
        agreed, error = _try(block, dialect, shape, weights)
        ran, failure = ran or agreed, error or failure
    if not ran:
        raise NoBlock(f"it cannot be run on a map of its own, to check it: {first_line(failure, 80)}")


def excitation(block: nn.Module, dialect: Dialect, channels: int) -> tuple[int | None, int]:
    """Reduced width (None for one layer) and MACs of the excitation of one descriptor, from running a copy of it.

    Raises:
        NoBlock: it fails, or gives no gate for each channel.
    """
    widths: list[int] = []

    def note(module: nn.Module, args: object, output: Tensor) -> None:
        widths.append(module.weight.shape[0])  # type: ignore[arg-type, index]

    twin = _copy(block, _weights(block)[0], torch.float32)
    for layer in holder(twin).modules():
        if isinstance(layer, _DENSE):
            layer.register_forward_hook(note)
    counter, looks = MacCounter(), ValueReads()
    descriptors = torch.zeros(1, channels, 1, 1)
    try:
        with torch.no_grad(), counter, looks.of(descriptors):
            gates = dialect.excite(twin, descriptors)
    except NotItsMap as error:
        raise NoBlock(str(error), inline=True) from None
    except Exception as error:  # whatever a stranger's layers raise
        raise NoBlock(
            f"the excitation of dialect '{dialect.name}' fails on it: {first_line(error, 80)}"
        ) from None
    if tuple(gates.shape) != (1, channels, 1, 1):
        raise NoBlock(
            f"the excitation of dialect '{dialect.name}' gives gates of shape {tuple(gates.shape)} for {channels} "
            "channels"
        )
    if looks.found and isinstance(dialect.excite, OwnForward):
        raise NoBlock(
            "its forward looks at values of its map, which differ from tile to tile; if it is SE, register a dialect "
            "for it"
        )
    return (widths[0] if len(widths) > 1 else None), counter.macs


def _try(
    block: nn.Module, dialect: Dialect, shape: tuple[int, ...], weights: Weights
) -> tuple[bool, Exception | None]:
    """Whether block and dialect agree; with the error where the block could not be run."""
    channels, *own_size = dialect.channels_first(shape)
    small = _SMALL[dialect.axes]
    # A window of fixed size (AvgPool2d) wants the map that it was made for.
    trials = [(dtype, size) for size in (small, tuple(own_size)) for dtype in (torch.float64, torch.float32)]
    failure: Exception | None = None
    differs: NoBlock | None = None
    for dtype, size in trials:
        if differs is not None and size == small:
            continue
        try:
            measured = _difference(block, dialect, channels, size, dtype, weights)
        except NoBlock as miss:
            differs = differs or miss
        except Exception as error:  # whatever a stranger's forward raises
            failure = failure or error
        else:
            # A forward that takes its mean in float32 rounds to that.
            if measured.difference <= (1e-6 if dtype == torch.float64 else 1e-4) * measured.largest:
                return True, None
            differs = differs or NoBlock("read as SE it gives other numbers than its own forward")
    if differs is not None:
        if _remembers(block, dialect, channels, small, weights):
            raise NoBlock(
                "it keeps a state from call to call: on the same map twice it gives two results. So it streams by "
                "itself"
            )
        raise differs
    return False, failure


def _remembers(
    block: nn.Module, dialect: Dialect, channels: int, size: tuple[int, ...], weights: Weights
) -> bool:  # fmt: skip
    """Whether a block gives another result for a map that it is given once more, as causal MoViNet's does."""
    twin = _copy(block, weights, torch.float64)
    x = torch.randn((2, channels, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        with torch.no_grad():
            # It has seen something else in between.
            first, _, again = (_run(twin, y, dialect) for y in (x, x + 1, x))
    except Exception:  # whatever a stranger's forward raises
        return False
    return isinstance(first, Tensor) and isinstance(again, Tensor) and not torch.equal(first, again)


class _Measured(NamedTuple):
    difference: float
    largest: float


def _difference(
    block: nn.Module,
    dialect: Dialect,
    channels: int,
    size: tuple[int, ...],
    dtype: torch.dtype,
    weights: Weights,
) -> _Measured:
    """Run the block on each tile alone, and the dialect on all of them at once."""
    rows, cols = _TILES
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    # Tiles with means that differ, in two images that differ.
    tiles = [
        numbers(2, channels, *size) + 2 * numbers(2, channels, *(1,) * len(size)) for _ in range(rows * cols)
    ]
    twin = _copy(block, weights, dtype)
    with torch.no_grad():
        expected = [_run(twin, tile, dialect) for tile in tiles]
        if any(not isinstance(out, Tensor) or out.shape != tile.shape for out, tile in zip(expected, tiles)):
            raise NoBlock("what it gives back is not a map of the shape that it takes")
        if not all(out.isfinite().all() for out in expected):
            raise ValueError("its numbers are not finite")
        try:
            reduce = dialect.squeeze(twin)
            spread = tuple(range(2, 2 + len(size)))
            grid = torch.stack([reduce(tile, spread) for tile in tiles], 2).unflatten(2, _TILES)
            gates = dialect.excite(twin, grid).flatten(2)
            got = [
                tile * gates[:, :, i].reshape(2, channels, *(1,) * len(size)) for i, tile in enumerate(tiles)
            ]
        except Exception as error:
            raise NoBlock(f"read as SE it fails: {first_line(error, 80)}") from None
    differences = [float((a - b).abs().max()) for a, b in zip(expected, got, strict=True)]
    return _Measured(max(differences), max(float(out.abs().max()) for out in expected))


def _run(block: nn.Module, x: Tensor, dialect: Dialect) -> Any:
    """The block's forward on a map with channels first, without the hooks that a converted block will have too."""
    call = block.forward if dialect.valid is None else functools.partial(dialect.valid.alone, block)
    if dialect.nhwc:
        return call(x.movedim(1, -1).contiguous()).movedim(-1, 1)
    return call(x.clone())


def _weights(block: nn.Module) -> tuple[Weights, ...]:
    held = [t for t in _tensors(block) if t.is_floating_point()]
    return ("random", "own") if all(_has_numbers(t) for t in held) else ("random",)


def _has_numbers(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def _tensors(block: nn.Module) -> list[Tensor]:
    """All that a block and its layers hold: parameters, buffers, attributes."""
    held: list[Tensor] = []
    for module in holder(block).modules():
        values = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        held += [value for value in values if isinstance(value, Tensor)]
    return held


def _copy(block: nn.Module, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """A copy on the CPU, in eval mode, of this type, with its own weights or others."""
    generator = torch.Generator().manual_seed(1)
    memo: dict[int, Any] = {}
    parameters = {id(p) for p in holder(block).parameters()}
    for tensor in _tensors(block):
        if id(tensor) in memo:
            continue
        with torch.no_grad():
            value = _numbers(tensor, weights, dtype, id(tensor) in parameters, generator)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(value, value.is_floating_point()) if is_parameter else value
    return in_eval(deep_copy(block, memo))


def _numbers(
    tensor: Tensor, weights: Weights, dtype: torch.dtype, learned: bool, generator: torch.Generator
) -> Tensor:
    if not tensor.is_floating_point():
        return (
            tensor.detach().cpu().clone()
            if _has_numbers(tensor)
            else torch.zeros(tensor.shape, dtype=tensor.dtype)
        )
    if weights == "own":
        return tensor.detach().cpu().to(dtype, copy=True)
    if not learned:  # running statistics, among them variances
        return torch.rand(tensor.shape, generator=generator, dtype=dtype) + 0.5
    fan_in = tensor[0].numel() if tensor.dim() > 1 and len(tensor) else 1
    return torch.randn(tensor.shape, generator=generator, dtype=dtype) * max(1, fan_in) ** -0.5
