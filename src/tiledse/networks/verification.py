"""Verify a conversion by running it: with one tile over each map, the network must give what it gave.

The network runs twice on one small random image, as it was and with one tile: copies of it, for a forward may keep what
it likes on its modules. In the first run the maps of the blocks are looked at, so that each block is tried
(``proof.py``) on numbers such as it gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..blame import blamed
from ..errors import TiledSEError, first_line
from ..plan import SEBlock
from ..tile import Tile
from .block import TiledBlock, Way, set_tile, untile
from .block_trial import Spread, Unproven, seeded
from .dialects import Dialect
from .duplicating import duplicate
from .inputs import Inputs
from .proof import Makes, prove
from .proof_evaluation import ONE_TILE
from .proof_valid import prove_mask
from .rounding import ROUNDING, lowest_precision, relative

# The shorter side of a small image, and what sides are a multiple of: strides of most networks.
_SHORT, _STEP = 64, 32


@dataclass
class Verified:
    """What was found out about the blocks to convert.

    Attributes:
        ways: By name: how a block is to be converted.
        refused: By name: why a block is not.
        difference: Of the outputs with one tile a map from those of the network as it was, the largest; None where the
            weights are on the meta device, so that nothing runs.
        largest: The largest output.
    """

    ways: dict[str, Way] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    difference: float | None = None
    largest: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A block to convert: the block, its tile and its dialect."""

    block: SEBlock
    tile: Tile
    dialect: Dialect


def verify(
    model: nn.Module,
    made: nn.Module,
    candidates: Sequence[Candidate],
    input_size: tuple[int, ...],
    example: Inputs | None = None,
) -> Verified:
    """Try blocks, and the network with all that pass; nothing of the network is changed.

    Args:
        model: The network, SE or converted.
        made: A copy of it in which each block is a module, also one that is written inline.
        candidates: Its blocks to convert.
        input_size: (C, H, W) of its images; see ``Plan``.
        example: What to call it with, in place of a small image.

    Raises:
        TiledSEError: the network gives values that are not finite, or cannot be copied.
    """
    found = Verified()
    run = None if any(p.is_meta for p in model.parameters()) else _Run(model, made, input_size, example)
    makes = Makes()
    names = [c.block.name for c in candidates]
    spreads = {} if run is None else run.as_it_was(names, {c.block.name: c.dialect for c in candidates})
    for c in candidates:
        b = c.block
        try:
            size = (b.channels, *b.sides)
            module = made.get_submodule(b.name)
            way = prove(module, c.dialect, c.tile, size, spreads.get(b.name), makes)
            if run is not None and c.dialect.valid is not None and b.name in run.given:
                prove_mask(module, c.dialect, way, *run.given[b.name])
            found.ways[b.name] = way
        except Unproven as reason:
            found.refused[b.name] = str(reason)
    if run is not None:
        dialects = {c.block.name: c.dialect for c in candidates}

        def one_tile(chosen: Sequence[str]) -> tuple[float, str]:
            return run.with_one_tile({name: found.ways[name] for name in chosen}, dialects)

        difference, refused = blamed(list(found.ways), one_tile)
        found.refused.update(refused)
        for name in refused:
            del found.ways[name]
        found.difference, found.largest = difference or 0.0, run.largest
    return found


class _Run:
    """A network on one small image."""

    def __init__(
        self, model: nn.Module, made: nn.Module, input_size: tuple[int, ...], example: Inputs | None
    ) -> None:
        self.model, self.made, self.input_size, self.example = model, made, input_size, example
        self.calls: dict[str, int] = {}
        self.given: dict[
            str, tuple[tuple[Any, ...], dict[str, Any]]
        ] = {}  # how blocks with lengths are called
        self.outputs: list[Tensor] = []
        self.names: list[str] = []
        self.inputs = Inputs((), {}, input_size)

    @property
    def largest(self) -> float:
        """The largest output."""
        return max((float(y.abs().max()) for y in self.outputs if y.numel()), default=0.0)

    def as_it_was(self, names: Sequence[str], dialects: Mapping[str, Dialect]) -> dict[str, Spread]:
        """Run it with plain SE; the spread of the numbers that each block gets."""
        error: Exception | None = None
        there = dict(self.model.named_modules(remove_duplicate=False))
        self.names = [name for name in names if name in there]  # the others are written inline
        for size in _sizes(self.input_size) if self.example is None else [self.input_size]:
            spreads: dict[str, Spread] = {}
            network = throwaway(self.model)

            def look(name: str, args: Any, kwargs: Any, spreads: dict[str, Spread] = spreads) -> None:
                x = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
                if name not in spreads:
                    if dialects[name].valid is not None:
                        self.given[name] = (args, kwargs)
                    spreads[name] = Spread.of(dialects[name].rows(x))

            self.inputs = self.example or Inputs((_image(self.model, size),), {}, size)
            try:
                self.outputs, self.calls = _outputs(network, self.inputs, self.names, look)
            except Exception as failed:  # a stranger's forward, at a size that may be too small for it
                error = failed
                continue
            if not all(bool(y.isfinite().all()) for y in self.outputs):
                raise TiledSEError(
                    "the network gives values that are not finite on a random image, so its conversion cannot be "
                    "verified; look at its weights, or leave verifying out with verify=False (--no-verify)"
                )
            return spreads
        text = "x".join(map(str, self.input_size))
        assert error is not None
        raise TiledSEError(
            f"the network fails on a random image of {text}: {type(error).__name__}: {first_line(error)}"
        ) from error

    def with_one_tile(self, ways: Mapping[str, Way], dialects: Mapping[str, Dialect]) -> tuple[float, str]:
        """Run it with one tile for some blocks: the largest difference, and what is wrong with it ('' is nothing)."""
        if not ways:
            return 0.0, ""
        network = throwaway(self.made)
        try:
            for name, way in ways.items():
                set_tile(network.get_submodule(name), dialects[name], ONE_TILE, way=way)
            outputs, calls = _outputs(network, self.inputs, list(ways))
        except Exception as error:
            return float(
                "inf"
            ), f"the network with it fails: {type(error).__name__}: {first_line(error, 100)}"
        for name in set(ways).intersection(self.names):
            if calls.get(name, 0) != self.calls.get(name, 0):
                return float("inf"), (
                    f"the network calls it {self.calls.get(name, 0)} times as it was and {calls.get(name, 0)} times "
                    "converted"
                )
        pairs = list(zip(outputs, self.outputs))
        figure = max((relative(a, b) for a, b in pairs), default=0.0)
        absolute = max(
            (float((a - b).abs().max()) for a, b in pairs if a.shape == b.shape and a.numel()), default=0.0
        )
        if len(outputs) == len(self.outputs) and figure <= self.rounding(figure):
            return absolute, ""
        return absolute, f"with one tile a map the network gives other numbers ({figure:.1e} of the largest)"

    def rounding(self, figure: float) -> float:
        """What a difference may be: rounding, as this network magnifies it."""
        dtype = next((y.dtype for y in self.outputs), torch.float32)
        allowed = 10 * ROUNDING.get(dtype, 1e-4)
        if figure <= allowed or figure == float("inf"):
            return allowed
        generator = torch.Generator().manual_seed(2)
        lowest = lowest_precision(lambda: _outputs(throwaway(self.model), self.inputs, ()))

        def nudge(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            noise = torch.randn(x.shape, generator=generator).to(x)
            return x * (1 + 4 * max(torch.finfo(x.dtype).eps, torch.finfo(lowest).eps) * noise)

        outputs, _ = _outputs(throwaway(self.model), self.inputs.map(nudge), ())
        moved = max((relative(a, b) for a, b in zip(outputs, self.outputs)), default=0.0)
        return max(allowed, 10 * moved)


def throwaway(model: nn.Module) -> nn.Module:
    """A copy of a network with plain SE, in eval mode, that shares the parameters: to run, and to let go.

    Raises:
        TiledSEError: it cannot be copied.
    """
    network = duplicate(model, {id(p): p for p in model.parameters()})
    for module in network.modules():
        if isinstance(module, TiledBlock):
            untile(module)
    network.eval()  # which need not give it back
    return network


def _outputs(
    network: nn.Module, inputs: Inputs, names: Sequence[str], look: Any = None
) -> tuple[list[Tensor], dict[str, int]]:
    """What a network gives, as tensors, and how often it calls some blocks; ``look`` sees their maps."""
    calls: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if look is not None:
                look(name, args, kwargs)

        return hook

    for name in names:
        network.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True, prepend=True)
    with torch.no_grad(), seeded():
        given = inputs.map(torch.clone)
        return tensors(network(*given.args, **given.kwargs)), calls


def _sizes(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """A small size to try first, and the network's own; frames and slices of volumes stay as many as they are."""
    if len(size) == 2:
        return [size] if size[1] <= 2 * _SHORT else [(size[0], 2 * _SHORT), size]
    *leading, height, width = size
    if height * width <= (2 * _SHORT) ** 2:
        return [size]
    factor = _SHORT / min(height, width) / _STEP
    small = (*leading, max(1, round(height * factor)) * _STEP, max(1, round(width * factor)) * _STEP)
    return [small, size]


def _image(model: nn.Module, size: tuple[int, ...]) -> Tensor:
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
    return x.to(parameter.device, parameter.dtype)


def tensors(output: object) -> list[Tensor]:
    """The floating tensors in whatever a network gives: a tensor, or lists and dicts of them."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    return [t for item in output for t in tensors(item)] if isinstance(output, (list, tuple)) else []
