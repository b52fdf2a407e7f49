"""One SE block, as it was and with tiles, on the same random maps: what is compared, and when that is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ..errors import TiledSEError, first_line
from ..tile import Tile
from .block import Conversion, TiledBlock, Way, tile_block, twin, untile
from .dialects import Dialect
from .duplicating import duplicate
from .inline_block import holder
from .rounding import ROUNDING, lowest_precision, relative
from .tilewise import Part


class Unproven(Exception):
    """Why a block is not converted; ``figure``: the difference, relative to the largest number, where that is why."""

    def __init__(self, reason: str, figure: float | None = None) -> None:
        super().__init__(reason)
        self.figure = figure


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of each channel of the maps that a block gets in its network, (C,) each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Spread:
        """Those of a map (N, C, H, W)."""
        flat = x.detach().transpose(0, 1).flatten(1).float().cpu()
        return cls(flat.mean(1), flat.std(1, correction=0))


class BlockTrial:
    """One block, tried in one type of numbers; nothing of the block is changed.

    Args:
        block: An SE block, plain or tiled.
        dialect: How its excitation is called.
        tile: The tile.
        size: (C, H, W) of its map; (C, T) or (C, D, H, W), where the dialect says so.
        spread: Of the numbers that it gets in its network; left out, they are about 0.
        dtype: The type of numbers.
    """

    def __init__(
        self, block: nn.Module, dialect: Dialect, tile: Tile, size: tuple[int, ...], spread: Spread | None,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.dialect, self.tile = dialect, tile
        self.sides = size[1:]
        self.size = size[0], size[1], prod(size[2:])
        self.spread, self.dtype = spread, dtype
        self.plain = _copy(block, dtype)
        self.layers = holder(self.plain)
        self.buffers = {name: value.clone() for name, value in self.layers.named_buffers()}
        self.filled = False  # whether it takes maps of its own size only
        self._rounding: float | None = None
        self.mode: bool | None = None  # of training, in which the copy is

    def old(self, training: bool = False) -> nn.Module:
        """The block as it was."""
        if self.mode is not training:
            for module in (self.layers, self.plain):
                module.train(training)
            self.mode = training
        for name, value in self.layers.named_buffers():
            if value.shape == self.buffers[name].shape:  # a table that a longer map has made longer stays
                value.copy_(self.buffers[name])
        return self.plain

    def new(self, tile: Tile, way: Way, training: bool = False) -> nn.Module:
        """The block with a tile; its layers are those of the block as it was."""
        block = twin(self.old(training))
        try:
            return tile_block(block, Conversion(tile, self.dialect, type(block), None, way))
        except TiledSEError as error:
            raise Unproven(str(error)) from None

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        """A block on a map (N, C, H, W), whatever the order of axes that it takes."""
        dialect = self.dialect
        if dialect.axes == 2:
            if dialect.nhwc:
                return dialect.call(block, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return dialect.call(block, x)
        # A part of the other axes has no shape of its own.
        own = x.shape[3] == self.size[2]
        y = dialect.call(
            block, dialect.native(x, (x.shape[2], *(self.sides[1:] if own else (x.shape[3], 1))))
        )
        return dialect.rows(y) if isinstance(y, Tensor) and y.dim() == dialect.axes + 2 else y

    def look_for_windows(self, x: Tensor) -> None:
        """Note a block that takes maps of its own size only, where a tile as large as the map has not shown it."""
        if not self.filled:
            try:
                with torch.no_grad():
                    self.call(self.old(), x[:, :, :6, :3].clone())
            except Exception:  # a window of fixed size: whatever its layers raise
                self.filled = True

    def map(self, images: int, height: int, width: int) -> Tensor:
        """Random maps: the first in the spread that the block meets in its network, others about 0."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        c, width = self.size[0], 1 if self.dialect.axes == 1 else width
        # Rows and columns differ, so that tiles do.
        x = normal(images, c, height, width) + normal(images, c, height, 1) + normal(images, c, 1, width)
        if self.spread is not None and len(self.spread.std) == c:
            std = torch.where(self.spread.std > 0, self.spread.std, 1.0)
            x[0] = self.spread.mean[:, None, None] + std[:, None, None] * x[0]
        like = next(self.layers.parameters(), torch.empty(0, dtype=self.dtype))
        return x.to(like.device, self.dtype)

    def compare(self, got: Tensor, expected: list[tuple[Part, Tensor]], what: str) -> None:
        """Check parts of a map, each image by its own largest number."""
        if not isinstance(got, Tensor):
            raise Unproven(what)
        for image in range(len(got)):
            pairs = [(part.of(got)[image].flatten(), y[image].flatten()) for part, y in expected]
            self.near(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]), what)

    def near(self, got: Tensor, expected: Tensor, what: str, times: int = 1, floor: float = 0.0) -> None:
        """Check numbers, to so many times the rounding; those that are not finite are near to nothing."""
        figure = relative(got, expected, floor)
        if figure <= ROUNDING[self.dtype] * times:
            return
        if not figure <= self.rounding * times:
            raise Unproven(f"{what} ({figure:.1e} of the largest)", figure)

    @property
    def rounding(self) -> float:
        """What rounding may be in the lowest precision that the block as it was computes in."""
        if self._rounding is None:
            x = self.map(2, *self.size[1:]) if self.filled else self.map(2, 6, 3)
            with torch.no_grad():
                self._rounding = max(
                    ROUNDING[self.dtype], ROUNDING[lowest_precision(lambda: self.call(self.old(), x))]
                )
        return self._rounding


def _copy(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A plain copy without the hooks of the block itself, which stay with it; of weights that are none, with some."""
    parameters = list(holder(block).parameters())
    shared = all(p.dtype is dtype or not p.is_floating_point() for p in parameters)
    meta = any(p.is_meta for p in parameters)
    made = duplicate(block, {id(p): p for p in parameters} if shared and not meta else {})
    for hooks in (
        made._forward_hooks,
        made._forward_pre_hooks,
        made._backward_hooks,
        made._backward_pre_hooks,
    ):
        hooks.clear()
    if meta:
        layers = holder(made).to_empty(device="cpu")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (*layers.parameters(), *layers.buffers()):
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
    if isinstance(made, TiledBlock):
        untile(made)
    if not shared:
        holder(made).to(dtype)
    return made


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers for whoever is tried, and afterwards the user's own."""
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        # torch.manual_seed takes 3 ms where CUDA is not initialised: it notes where it was called.
        (torch.manual_seed if torch.cuda.is_initialized() else torch.default_generator.manual_seed)(0)
        yield


@contextmanager
def said(what: str) -> Iterator[None]:
    """Whatever a stranger's code raises, as a reason."""
    try:
        yield
    except Unproven:
        raise
    except Exception as error:
        raise Unproven(f"{what}: {first_line(error, 100)}") from None
