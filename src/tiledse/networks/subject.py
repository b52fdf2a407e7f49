"""Subject: a network under measurement: what it gives with tiles, and what its SE blocks see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..op.functional import squeeze
from ..op.module import TiledSqueezeExcite
from ..plan import Plan
from ..tile import Tile
from .converter import convert_shared
from .finder import find_dialects
from .modes import evaluating, in_eval

See = Callable[[int, Tensor], None]
Branches = Callable[[Tensor], Iterator[Any]]


class Subject(ABC):
    """A network with plain SE.

    Attributes:
        plan: Its blocks; every tile is ``HxW``.
    """

    plan: Plan

    @abstractmethod
    def network(self, plan: Plan) -> nn.Module:
        """The network with the tiles of a plan; weights are shared where that is possible."""

    @abstractmethod
    def observe(self, inputs: Tensor, see: See) -> Any:
        """Run the SE network on (N, C, H, W) and show the map of each block, as it comes to the block.

        Args:
            inputs: Images.
            see: Called with (number of the block, map (N, C, H, W)); for a block that is called more than once,
                with each of its maps.

        Returns:
            What the network gives.
        """

    @abstractmethod
    def squeeze(self, block: int, x: Tensor, tile: Tile) -> Tensor:
        """Descriptors (N, C, rows, cols) of a map (N, C, H, W), squeezed as the block does it."""

    @abstractmethod
    def excite(self, block: int, descriptors: Tensor) -> Tensor:
        """Gates of the block for descriptors (N, C, rows, cols), of the same shape."""

    @abstractmethod
    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """The SE network and one network for each plan, with what they have in common run once."""


class SharedPrefix(ABC):
    """The SE network and some tiled forms of it: what comes before the first tiled block runs once an image.

    Attributes:
        whole: Names of the blocks that nothing could be shared before; their networks run from the image on.
    """

    whole: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """What the SE network gives on (N, C, H, W), then what the network of each plan gives, in order."""


def first_tiled(plan: Plan) -> int | None:
    """Number of the first block whose tile is smaller than its map; None where the plan changes nothing.

    Example:
        >>> from tiledse.plan import SEBlock
        >>> blocks = tuple(SEBlock(f"{i}.se", 8, 2, side, side, "timm.SEModule") for i, side in enumerate((14, 7)))
        >>> plan = Plan(blocks, (Tile.parse("HxW"),) * 2, (3, 28, 28))
        >>> first_tiled(plan.with_tile("7xW")), first_tiled(plan.with_tile("7xW", "1.se"))
        (0, None)
    """
    for number, (block, tile) in enumerate(plan):
        if tile.size(block.height, block.width) != (block.height, block.width):
            return number
    return None


class TorchSubject(Subject):
    """A PyTorch network.

    Args:
        model: The network, SE or converted; it is left as it was. Blocks with tiles are measured with plain SE.
        input_size: (C, H, W) of its images.

    Raises:
        TiledSEError: the network refuses the input.

    Example:
        >>> import timm
        >>> subject = TorchSubject(timm.create_model("regnety_002").eval(), (3, 64, 64))
        >>> shapes = []
        >>> _ = subject.observe(torch.zeros(1, 3, 64, 64), lambda block, x: shapes.append(tuple(x.shape)))
        >>> shapes[0], len(shapes)
        ((1, 24, 16, 16), 13)
    """

    def __init__(self, model: nn.Module, input_size: Sequence[int] | None = None) -> None:
        found, self._dialects = find_dialects(model, input_size)
        self.plan = found.with_tile("HxW") if len(found) else found
        self._given = model
        self.model = convert_shared(model, self.plan) if len(found) else model

    def network(self, plan: Plan) -> nn.Module:
        """See Subject; parameters and buffers are those of the model given."""
        return in_eval(convert_shared(self.model, plan, (self.plan, self._dialects)))

    def module(self, block: int) -> nn.Module:
        """The SE block's module."""
        return self.model.get_submodule(self.plan.blocks[block].name)

    def observe(self, inputs: Tensor, see: See) -> Any:
        """See Subject; one map is held at a time."""

        def watch(number: int, nhwc: bool) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                see(number, args[0].permute(0, 3, 1, 2) if nhwc else args[0])

            return hook

        handles = [
            self.module(number).register_forward_pre_hook(watch(number, dialect.nhwc))
            for number, dialect in enumerate(self._dialects)
        ]
        try:
            with evaluating(self.model), torch.no_grad():
                return self.model(inputs)
        finally:
            for handle in handles:
                handle.remove()

    def squeeze(self, block: int, x: Tensor, tile: Tile) -> Tensor:
        """See Subject."""
        return squeeze(x, tile, self._dialects[block].squeeze(self.module(block)))

    def excite(self, block: int, descriptors: Tensor) -> Tensor:
        """See Subject."""
        module = self.module(block)
        with evaluating(module), torch.no_grad():
            if isinstance(module, TiledSqueezeExcite):
                return module.excite(descriptors)
            return self._dialects[block].excite(module, descriptors)

    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """See Subject; ``replay.Replayed``."""
        from .replay import Replayed

        return Replayed(self, plans)
