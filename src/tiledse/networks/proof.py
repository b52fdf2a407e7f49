"""Prove a converted block: it gives, on real numbers, what the block as it was gives on each tile alone.

In evaluation and in training; by one tile over the map, too. What the proof finds out on the way is the block's
``Way``: whether it writes into its map, which excitation it has in training, what it reads of itself at each call.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TiledSEError, first_line
from ..tile import Tile
from .block import Conversion, TiledBlock, Way, tile_block, twin, untile
from .dialects import Dialect
from .duplicating import duplicate
from .inline_block import holder
from .tilewise import Part, by_tiles
from .watching import Seen, plain_value, watch

# Larger than any map, and a tile larger than the map is the map: SE, computed by the tiled operator.
ONE_TILE = Tile(10**9, 10**9)

# Relative to the largest number: rounding, or more. What lies between is computed again in float64.
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
_DOUBT = 1e-2

# Elements of the map that a block is tried on; larger maps are cut, tall enough for several tiles.
_LARGEST = 1 << 15


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


Kinds = dict[Any, Way]


def prove(
    block: nn.Module,
    dialect: Dialect,
    tile: Tile,
    size: tuple[int, int, int],
    spread: Spread | None = None,
    kinds: Kinds | None = None,
) -> Way:
    """Try a block with a tile against the block as it was; nothing of the block is changed.

    Args:
        block: An SE block, plain or tiled.
        dialect: How its excitation is called.
        tile: The tile.
        size: (C, H, W) of its map.
        spread: Of the numbers that it gets in its network; left out, they are about 0.
        kinds: What was found out about blocks of the same make, to be looked up and added to: what they read, keep and
            call is looked at once. Numbers are compared for each block.

    Returns:
        How it is to be converted.

    Raises:
        Unproven: the tiled block would give something else; with the figure.

    Example:
        >>> import timm
        >>> from .dialects import known_dialect
        >>> block = timm.layers.SEModule(16)
        >>> prove(block, known_dialect(block), Tile.parse("3xW"), (16, 8, 8)).plain
        True
    """
    parameter = next(holder(block).parameters(), torch.empty(0))
    # Half precision rounds away what is to be seen.
    own = parameter.dtype if parameter.is_floating_point() else torch.float32
    first = torch.float32 if own in (torch.float16, torch.bfloat16) else own
    kinds = {} if kinds is None else kinds
    try:
        return _Trial(block, dialect, tile, size, spread, first).way(kinds)
    except Unproven as error:
        if error.figure is None or not error.figure < _DOUBT or first is torch.float64:
            raise
        # Gates that magnify rounding, or something else than rounding: float64 says which.
        return _Trial(block, dialect, tile, size, spread, torch.float64).way(kinds)


class _Trial:
    """One block, tried in one type of numbers."""

    def __init__(
        self, block: nn.Module, dialect: Dialect, tile: Tile, size: tuple[int, int, int], spread: Spread | None,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.dialect, self.tile, self.size = dialect, tile, size
        self.spread, self.dtype = spread, dtype
        self.plain = _copy(block, dtype)
        self.layers = holder(self.plain)
        self.buffers = {name: value.clone() for name, value in self.layers.named_buffers()}
        self.filled = False
        self.mode: bool | None = None  # of training, in which the copy is

    def way(self, kinds: Kinds) -> Way:
        """How the block is to be converted.

        Raises:
            Unproven: in no way.
        """
        x = self.map(2, *_cut(self.tile, self.size))
        inplace, y = self.writes(x)
        plain = Way(inplace=inplace)
        folded = replace(plain, folded=True, folded_training=True)
        way = self.first((plain, folded), self.evaluated, x, y)
        kind = self.kind(way)
        read = kinds[kind].read if kind in kinds else self.unread(way, x)
        way = replace(way, read=tuple((path, name, self.value(path, name)) for path, name, _ in read))
        kinds[kind] = way
        return self.first((way, replace(way, folded_training=True)), self.trained)

    def first(self, ways: tuple[Way, ...], check: Callable[..., None], *args: Any) -> Way:
        """The first of some ways that a check lets pass.

        Raises:
            Unproven: none; with the reason of the first.
        """
        reasons = []
        for way in dict.fromkeys(ways):
            try:
                check(way, *args)
            except Unproven as error:
                reasons.append(error)
            else:
                return way
        raise reasons[0]

    def kind(self, way: Way) -> tuple[Any, ...]:
        """What blocks of one make have in common: classes, names, hooks, and all values but numbers of channels."""
        parts = [(path, *looks(part, numbers=False)) for path, part in self.plain.named_modules()]
        return (
            way,
            self.dialect.name,
            repr(self.dialect.excite),
            *parts,
        )  # a traced one has slices, without a hash

    def value(self, path: str, name: str) -> Any:
        """An attribute of a part of the block."""
        return copy.copy(plain_value(self.plain.get_submodule(path), name)[1])

    def old(self, training: bool = False) -> nn.Module:
        """The block as it was."""
        if self.mode is not training:
            for module in (self.layers, self.plain):
                module.train(training)
            self.mode = training
        for name, value in self.layers.named_buffers():
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
        if self.dialect.nhwc:
            return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return block(x)

    def map(self, images: int, height: int, width: int) -> Tensor:
        """Random maps: the first in the spread that the block meets in its network, others about 0."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        c = self.size[0]
        # Rows and columns differ, so that tiles do.
        x = normal(images, c, height, width) + normal(images, c, height, 1) + normal(images, c, 1, width)
        if self.spread is not None and len(self.spread.std) == c:
            std = torch.where(self.spread.std > 0, self.spread.std, 1.0)
            x[0] = self.spread.mean[:, None, None] + std[:, None, None] * x[0]
        like = next(self.layers.parameters(), torch.empty(0, dtype=self.dtype))
        return x.to(like.device, self.dtype)

    def writes(self, x: Tensor) -> tuple[bool, Tensor | None]:
        """Whether the block writes its product into the map that it is given; and that, unless it takes none so large.

        Raises:
            Unproven: it gives no map, values that are not finite, or does something else to its map.
        """
        given = x.clone()
        with torch.no_grad():
            try:
                y = self.call(self.old(), given)
            except Exception:  # a block that takes maps of its own size only: whatever its layers raise
                self.filled = True
                given = self.map(2, *self.size[1:])
                x = given.clone()
                with _said("the block itself fails on a map of its size"):
                    y = self.call(self.old(), given)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            raise Unproven("it does not give back one map of the size that it gets")
        if not y.isfinite().all():
            raise Unproven("it gives values that are not finite")
        if torch.equal(given, x):
            return False, y
        if y.data_ptr() != given.data_ptr():
            raise Unproven("it changes the map that it is given, and gives back another")
        return True, y

    def evaluated(self, way: Way, x: Tensor, y: Tensor) -> None:
        """Check the block in eval mode: tile by tile, and with one tile over the map."""
        old = self.old()

        def alone(part: Tensor) -> Tensor:
            return self.call(old, part)

        with torch.no_grad():
            try:
                if self.filled:
                    raise ValueError
                expected = by_tiles(alone, x, self.tile)
            except Exception:  # as above
                self.filled = True
                if x.shape[2:] != self.size[1:]:
                    x = self.map(2, *self.size[1:])
                with _said("the block itself fails on a map of its size"):
                    y = self.call(old, x.clone())
                    expected = by_tiles(alone, x, self.tile, filled=True)
            whole = [(Part(0, x.shape[2], 0, x.shape[3]), y)]
            for tile, wanted in ((self.tile, expected), (ONE_TILE, whole)):
                given = x.clone()
                with _said("with tiles it fails"):
                    got = self.call(self.new(tile, way), given)
                which = "one tile over the map" if tile is ONE_TILE else f"tiles {tile}"
                self.compare(
                    got, wanted, f"with {which} it gives other numbers than its own forward on each tile"
                )
                if not torch.equal(given, got if way.inplace else x):
                    raise Unproven("with tiles it treats the map that it is given in another way")

    def trained(self, way: Way) -> None:
        """Check the block in train mode, from one seed: numbers, gradients, and what the batch leaves behind."""
        _, height, width = self.size
        x = self.map(2, height, width) if self.filled else self.map(2, 6, 3)
        tile = Tile(-(-height // 3), None) if self.filled else Tile(2, None)
        leaf, again = x.clone().requires_grad_(), x.clone().requires_grad_()
        old = self.old(training=True)
        try:
            with seeded():
                expected = by_tiles(lambda part: self.call(old, part), leaf * 1.0, tile, filled=self.filled)
        except TiledSEError:
            return  # a block that was written inline, and says itself that it cannot be trained
        except Exception as error:
            raise Unproven(f"the block itself fails in training: {first_line(error, 100)}") from None
        weigh = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
        wanted = _gradients([(y, part.of(weigh)) for part, y in expected], leaf, self.layers)
        left = {name: value.clone() for name, value in self.layers.named_buffers()}
        new = self.new(tile, way, training=True)
        with seeded(), _said("with tiles it fails in training"):
            got = self.call(new, again * 1.0)
        self.compare(got, expected, "in training it gives other numbers than its own forward on each tile")
        ours = _gradients([(part.of(got), part.of(weigh)) for part, _ in expected], again, self.layers)
        # A gradient that is 0 but for rounding, as that of a bias before a normalisation, is none to be relative to.
        floor = (1e-6 if self.dtype is torch.float64 else 1e-3) * max(
            float(g.abs().max()) for g in wanted.values()
        )
        for name, gradient in wanted.items():
            self.near(ours[name], gradient, f"in training the gradient of {name} is another", 10, floor)
        for name, value in self.layers.named_buffers():
            self.near(value, left[name], f"in training it leaves another '{name}' behind")

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
        if not figure <= ROUNDING[self.dtype] * times:
            raise Unproven(f"{what} ({figure:.1e} of the largest)", figure)

    def unread(self, way: Way, x: Tensor) -> tuple[tuple[str, str, Any], ...]:
        """What the block's own forward reads of itself at each call, and the tiled one does not.

        Raises:
            Unproven: its own forward does more than to read: it keeps something, switches autocast, has a hook inside.
        """
        if self.layers is not self.plain:
            return ()  # written inline: steps of a forward, which is traced again where it reads something else
        x = self.map(2, *self.size[1:]) if self.filled else x[:, :, :6, :3]
        found: dict[tuple[str, str], Any] = {}
        for training in (False, True):
            before = self.seen(self.old(training), x)
            after = self.seen(self.new(self.tile, way, training), x)
            for path, name in sorted(before.kept - after.kept):
                raise Unproven(
                    f"its forward keeps '{_dotted(path, name)}' on itself; with tiles it would not"
                )
            for path in sorted(before.called - after.called):
                if _has_hooks(self.plain.get_submodule(path)):
                    raise Unproven(f"'{path}' in it has a hook, and would not be called with tiles")
            if False in before.autocast and False not in after.autocast:
                raise Unproven("its forward switches autocast off; with tiles it would not")
            for path, name in before.read - after.read:
                part = self.plain.get_submodule(path)
                plain, value = plain_value(part, name)
                if plain and not type(part).__module__.startswith("torch.nn."):
                    found[path, name] = value
        return tuple((path, name, found[path, name]) for path, name in sorted(found))

    def seen(self, block: nn.Module, x: Tensor) -> Seen:
        """What a call of a block shows, under autocast where the device has it."""
        device = x.device.type
        switch = torch.autocast(device, torch.bfloat16, enabled=torch.amp.is_autocast_available(device))
        try:
            with torch.no_grad(), seeded(), switch, watch(block) as seen:
                self.call(block, x.clone())
        except Exception:  # layers that autocast does not know; those raise in what follows
            with torch.no_grad(), seeded(), _said("it cannot be watched"), watch(block) as seen:
                self.call(block, x.clone())
            seen.autocast.clear()
        return seen


def looks(part: nn.Module, numbers: bool = True) -> tuple[Any, ...]:
    """What shows whether a module is of the same make as another; with whole numbers, such as channels, or without."""
    kinds = (bool, float, str, int) if numbers else (bool, float, str)
    own = vars(part)
    plain = tuple((k, v) for k, v in own.items() if isinstance(v, kinds) and (numbers or type(v) is not int))
    names = (tuple(own), tuple(part._parameters), tuple(part._buffers), tuple(part._modules))
    return type(part), names, _has_hooks(part), plain


def relative(got: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference, relative to the largest number expected; infinite where something is not finite.

    Args:
        got: Numbers.
        expected: Numbers.
        floor: What the difference is relative to at the least.

    Example:
        >>> relative(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
        0.5
    """
    if got.shape != expected.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    got, expected = got.detach(), expected.detach()
    if got.dtype is not expected.dtype:
        got, expected = got.double(), expected.double()
    difference = float((got - expected).abs().max())  # NaN where one is, or both are infinite
    if not difference:
        return 0.0 if bool(expected.isfinite().all()) else float("inf")
    largest = max(float(expected.abs().max()), floor)
    figure = difference / largest if largest else float("inf")
    return figure if math.isfinite(figure) else float("inf")


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


def _cut(tile: Tile, size: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of the map that a block is tried on: its own, or fewer where that is large."""
    channels, height, width = size
    if channels * height * width <= _LARGEST:
        return height, width
    tall, wide = tile.size(height, width)
    rows, cols = (
        max(3 * part, 16) + side % part if part < side else 16
        for part, side in ((tall, height), (wide, width))
    )
    return min(height, rows), min(width, cols)


def _has_hooks(part: nn.Module) -> bool:
    return bool(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
    )


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _gradients(pairs: list[tuple[Tensor, Tensor]], x: Tensor, block: nn.Module) -> dict[str, Tensor]:
    """Of a weighed sum of outputs: for the map and each parameter that is trained; zeros where there is none."""
    named = {"its map": x, **{f"'{n}'": p for n, p in block.named_parameters() if p.requires_grad}}
    loss = torch.stack([(y * weight).sum() for y, weight in pairs]).sum()
    if not loss.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(named.items(), grads)}


@contextmanager
def seeded() -> Iterator[None]:
    """The same random numbers for whoever is tried, and afterwards the user's own."""
    with torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        # torch.manual_seed takes 3 ms where CUDA is not initialised: it notes where it was called.
        (torch.manual_seed if torch.cuda.is_initialized() else torch.default_generator.manual_seed)(0)
        yield


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Whatever a stranger's code raises, as a reason."""
    try:
        yield
    except Unproven:
        raise
    except Exception as error:
        raise Unproven(f"{what}: {first_line(error, 100)}") from None
