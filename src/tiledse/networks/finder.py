"""Find the SE blocks of a network, and say of every near miss why it is none.

The network runs once on a fake image (shapes only: no memory and no arithmetic of the image's size). Whatever pools a
whole map in that run is an SE block or a near miss; nothing is passed over in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from ..correction import Correction
from ..errors import TiledSEError
from ..op.grids import product_macs
from ..op.module import TiledSqueezeExcite
from ..plan import NearMiss, Plan, SEBlock, Totals
from ..refusing import partial_mean
from ..tile import Tile
from .block import TiledBlock
from .dialects import Dialect, Layers, class_name, known_dialect
from .flow import Pool
from .inline import outline
from .inline_block import InlineSE
from .inputs import Inputs, inputs_for
from .observation import Call, Observation, observe
from .reasons import INLINE, NO_MEAN, NOT_MULTIPLIED, NoBlock
from .recognition import Recognised, recognise
from .trial import excitation

_WHOLE = Tile.parse("HxW")
_BUILT = Dialect("tiledse", class_name(TiledSqueezeExcite), Layers(("fc1", "act", "fc2", "gate")))
_NETWORK = "(the network)"
_PART = f"{INLINE}, or are no product that is read; give them a module of their own, with x * gates, to have them found"


def find(model: nn.Module, input_size: Sequence[int] | None = None, *, example_inputs: Any = None) -> Plan:
    """Find the SE blocks of a network.

    Args:
        model: The network; it is left as it was.
        input_size: (C, H, W) of an image. Left out, it is the one that timm gave the network.
        example_inputs: For a network that takes more or other than one image: a tensor, a tuple of arguments, or a
            dict of keyword arguments. Only their shapes count.

    Returns:
        A plan in which each block has the tile that it has now: ``HxW`` for plain SE. Its ``near_misses`` name
        what pools a whole map and is no SE block, its ``network`` holds parameters and MACs.

    Raises:
        TiledSEError: no input size is known, the network refuses the input, or it is of a kind that cannot be read.

    Example:
        >>> import timm
        >>> plan = find(timm.create_model("regnety_002"), (3, 224, 224))
        >>> len(plan), plan.blocks[0].name, plan.blocks[0].height
        (13, 's1.b1.se', 56)
        >>> [miss.name for miss in plan.near_misses]
        ['head.global_pool']
    """
    plan, _ = find_dialects(model, input_size, example_inputs)
    return plan


def find_dialects(
    model: nn.Module, input_size: Sequence[int] | None = None, example_inputs: Any = None
) -> tuple[Plan, tuple[Dialect, ...]]:
    """``find``, with the dialect of each block beside it."""
    check_kind(model)
    inputs = inputs_for(model, input_size, example_inputs)
    reading = _Reading.of(model, inputs)
    near = reading.near_misses
    if reading.inline:
        made = outline(model, reading.inline, reading.run.arguments)
        if made.model is not None:
            reading = _Reading.of(made.model, inputs)
        near = tuple(
            made.told(miss) if miss.reason.startswith(INLINE) else miss for miss in reading.near_misses
        )
    order = {name: i for i, name in enumerate(reading.run.calls)}
    found = [reading.found[name] for name in sorted(reading.found, key=order.__getitem__)]
    blocks, tiles = tuple(one.block for one in found), tuple(one.tile for one in found)
    corrections = _fitting(blocks, [one.correction for one in found])
    # What the tiles that it has add to the run: gates, and products that are means of rows, for pooling counts nothing.
    tiled = sum(
        (tile.tiles(b.height, b.width) - 1) * b.excite_macs * b.calls
        + (1 if correction is None else 2) * b.channels * product_macs(tile, b.height) * b.calls
        for b, tile, correction in zip(blocks, tiles, corrections, strict=True)
    )
    network = Totals(
        sum(p.numel() for p in model.parameters()), reading.run.macs - tiled, reading.run.uncounted
    )
    plan = Plan(blocks, tiles, inputs.size, near, network, corrections)
    return plan, tuple(one.dialect for one in found)


def check_kind(model: object) -> None:
    """Check that a network is one whose modules can be read and exchanged.

    Raises:
        TiledSEError: it is not; says what to give instead.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise TiledSEError(
            "this is TorchScript, whose blocks cannot be exchanged; give the nn.Module that it was made from, before "
            "torch.jit.script or trace (or an ONNX file of it)"
        )
    if isinstance(model, torch.export.ExportedProgram):
        raise TiledSEError(
            "this is an ExportedProgram, whose blocks cannot be exchanged; give the nn.Module that it was made from, "
            "before torch.export (or an ONNX file of it)"
        )
    if not isinstance(model, nn.Module):
        raise TiledSEError(f"expected a network (torch.nn.Module), got {type(model).__name__}")
    for name, module in model.named_modules():
        home, kind = type(module).__module__, type(module).__name__
        float_ones = "FloatFunctional" in kind or ".qat" in home
        if home.startswith(("torch.ao.nn.", "torch.nn.")) and ".quantized" in home and not float_ones:
            raise TiledSEError(
                f"'{name}' is a quantised {kind}, whose integers have no excitation to call on tiles; "
                "convert the float network first, and quantise what comes of it"
            )


def _fitting(
    blocks: Sequence[SEBlock], corrections: Sequence[Correction | None]
) -> tuple[Correction | None, ...]:
    """The corrections of blocks.

    Raises:
        TiledSEError: the input size is not the one that they were fitted for.
    """
    for block, correction in zip(blocks, corrections, strict=True):
        if correction is not None and correction.height != block.height:
            raise TiledSEError(
                f"block '{block.name}' is calibrated for maps of {correction.height} rows, but has {block.height} at "
                "this input size; give the size that it was calibrated with"
            )
    return tuple(corrections)


class _Found(NamedTuple):
    block: SEBlock
    tile: Tile
    dialect: Dialect
    correction: Correction | None = None


@dataclass
class _Reading:
    """What the pools of a run are: blocks and near misses, by name; and the modules that have a product inline."""

    modules: dict[str, nn.Module]
    run: Observation
    found: dict[str, _Found] = field(default_factory=dict)
    misses: dict[str, str] = field(default_factory=dict)
    inline: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> _Reading:
        """Run a network and read it."""
        reading = cls(dict(model.named_modules()), observe(model, inputs))
        reading.known()
        for pool in sorted(reading.run.pools, key=lambda pool: bool(pool.part)):
            reading.pool(pool)
        for stack in reading.run.gates:
            if not any(call.name in reading.found or reading._told(call.name) for call in stack):
                reading.misses[reading._around(stack) or _NETWORK] = NO_MEAN
        return reading

    @property
    def near_misses(self) -> tuple[NearMiss, ...]:
        """What pools a map and is no block."""
        return tuple(NearMiss(name, why) for name, why in self.misses.items() if name not in self.found)

    def known(self) -> None:
        """Blocks of ours and of registered classes, wherever they stand."""
        for name, module in self.modules.items():
            ours = isinstance(module, (TiledBlock, TiledSqueezeExcite, InlineSE))
            if ours or known_dialect(module) is not None:
                calls = self.run.calls.get(name, [])
                if not calls:
                    self.misses[name] = self._uncalled(name)
                else:
                    self._block(name, calls[0], frozenset())

    def pool(self, pool: Pool) -> None:
        """A pool that no known block has made: the innermost module that takes the map and gives it back gated."""
        if any(call.name in self.found for call in pool.stack):
            return
        if pool.part:
            self._part_of_a_map(pool)
            return
        if pool.product is None:
            if not pool.quiet and not any(self._told(call.name) for call in pool.stack):
                self._miss(self._around(pool.stack), NOT_MULTIPLIED)
            return
        around = [a for a, b in zip(pool.stack, pool.product) if a is b]
        takes = [call for call in around if call.maps & {pool.content, *pool.masked}]
        if self._told((takes or around)[-1].name):
            return  # not where a module around it has another pool that is none: CondConv's, say
        kinds = frozenset().union(*(p.kinds for p in self.run.pools if p.content == pool.content))
        for call in reversed(takes):
            if self._block(call.name, call, kinds):
                return
        self.inline.append(around[-1].name)
        if not takes:
            self._miss(around[-1].name, _PART)

    def _part_of_a_map(self, pool: Pool) -> None:
        """A mean over some axes that gates the map: none where the map is pooled whole, in one step more, say."""
        whole = any(
            p.product is not None and p.content == pool.content and not p.part for p in self.run.pools
        )
        if whole or pool.product is None:
            return
        around = tuple(a for a, b in zip(pool.stack, pool.product) if a is b)
        self._miss(self._around(around), partial_mean(pool.part, pool.axes))

    def _block(self, name: str, call: Call, kinds: frozenset[str]) -> bool:
        try:
            self.found[name] = self._read(name, self.modules[name], call, kinds)
        except NoBlock as miss:
            self._miss(name, _PART if miss.inline else str(miss))
            return False
        self.misses.pop(name, None)
        return True

    def _read(self, name: str, module: nn.Module, call: Call, kinds: frozenset[str]) -> _Found:
        calls = self.run.calls[name]
        shape = call.shape
        if not 3 <= len(shape) <= 5:
            raise NoBlock(f"its input has {len(shape)} axes, not the 3 to 5 of a map")
        if len({one.shape for one in calls}) > 1:
            raise NoBlock(f"it is called {len(calls)} times, on maps of different sizes")
        known = module.tiledse.dialect if isinstance(module, TiledBlock) else known_dialect(module)
        if not all(one.plain for one in calls) and (known is None or known.valid is None):
            raise NoBlock(
                "it is called with more than its map, lengths or a mask, say, which its tiles would not follow; if it "
                "is SE, register a dialect that says which frames are valid (ts.register_dialect(..., valid=...))"
            )
        tile, correction, dialect = _WHOLE, None, None
        if isinstance(module, TiledBlock):
            made = module.tiledse
            tile, correction, dialect = made.tile, made.correction, made.dialect
        elif isinstance(module, InlineSE):
            dialect = module.dialect
        elif isinstance(module, TiledSqueezeExcite):
            if len(shape) != 4:
                raise NoBlock(f"its input has {len(shape)} axes, not the 4 of a map")
            tile, dialect = module.tile, _BUILT
        if dialect is None:
            seen = recognise(module, shape, kinds)
        else:
            seen = Recognised(dialect, *excitation(module, dialect, dialect.channels_first(shape)[0]))
        channels, *sides = seen.dialect.channels_first(shape)
        block = SEBlock(
            name, channels, seen.reduced, sides[0], prod(sides[1:]), seen.dialect.name, seen.macs, len(calls),
            tuple(sides),
        )  # fmt: skip
        return _Found(block, tile, seen.dialect, correction)

    def _miss(self, name: str, reason: str) -> None:
        if not self._told(name):
            self.misses[name or _NETWORK] = reason

    def _told(self, name: str) -> bool:
        """Whether it is a near miss for more than a pool that ends in no product."""
        return self.misses.get(name or _NETWORK, NOT_MULTIPLIED) != NOT_MULTIPLIED

    def _around(self, stack: tuple[Call, ...]) -> str:
        """The innermost module that is more than a layer."""
        names = [call.name for call in stack if call.name]
        holders = [name for name in names if next(self.modules[name].children(), None) is not None]
        return (holders or names or [""])[-1]

    def _uncalled(self, name: str) -> str:
        parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
        for parent in ["", *parents]:
            if "forward" in vars(self.modules[parent]):
                return (
                    f"the forward of '{parent or _NETWORK}' was set on the object itself, and does not call this "
                    "block of a copy; take it off before"
                )
        return "it is an SE block, but forward never calls it"
