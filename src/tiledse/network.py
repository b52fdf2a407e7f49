"""Network: one face of every kind of network, which is all that the verbs know of one.

A kind implements it once, in its own room, and is listed in ``opening.KINDS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import TiledSEError
from .plan import NearMiss, Plan
from .targets import Target
from .tile import Tile

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    See = Callable[[int, Tensor], None]
    Rows = Callable[[Tensor], list[np.ndarray]]


@dataclass(frozen=True)
class Given:
    """What is known of a network that is to be opened.

    Attributes:
        input_size: (C, H, W) of its images; None where the network says it itself.
        weights: A file with its state dict.
        pretrained: Whether its library is to fetch the weights.
        image: Which input takes the image, where there are several.
        example_inputs: For a network that takes more or other than one image.
        device: Where it runs, as torch writes it.
        threads: Threads of a runtime of its own; None takes torch's.
        name: What tables call it.
        runs: Whether it is to be run; one that is only looked at may be without numbers.
    """

    input_size: Sequence[int] | None = None
    weights: str | Path | None = None
    pretrained: bool = False
    image: str | None = None
    example_inputs: Any = None
    device: str | None = None
    threads: int | None = None
    name: str | None = None
    runs: bool = True


class Network(ABC):
    """A network that was opened (``tiledse.open``); it is left as it was.

    Attributes:
        kind: What it is: ``PyTorch``, ``ONNX``.
        name: What tables and messages call it.
        given: What it was opened from: a module, an ``OnnxModel``.
        plan: Its SE blocks, each with the tile that it has now; found once.
        random: Whether its weights are random, because none were asked for.
        config: What it says of the images that it takes, in the keys of timm's ``pretrained_cfg``; None where it says
            nothing.
        file_ending: How a file of this kind ends.
        exports: Whether networks of this kind can be written as another one.
        casts: Whether autocast changes the numbers that it runs in.
        says_images: Whether networks of this kind say it; of others the user does.
    """

    kind: ClassVar[str]
    name: str
    given: Any
    plan: Plan
    random: bool = False
    config: Mapping[str, Any] | None = None
    says_images: ClassVar[bool] = False
    file_ending: ClassVar[str]
    exports: ClassVar[bool] = False
    casts: ClassVar[bool] = False

    @cached_property
    def se(self) -> Plan:
        """The plan in which every block is plain SE."""
        return self.plan.with_tile("HxW") if len(self.plan) else self.plan

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it lies in, which nothing may be written over."""
        return ()

    @property
    @abstractmethod
    def weights(self) -> str:
        """The fingerprint of its weights, the same before and after conversion."""

    @property
    def device(self) -> str:
        """Where it runs, as torch writes it."""
        return "cpu"

    @abstractmethod
    def module(self, purpose: str) -> nn.Module:
        """The module of PyTorch that it is.

        Args:
            purpose: What for, as messages say it.

        Raises:
            TiledSEError: it is of another kind.
        """

    @abstractmethod
    def convert(self, plan: Plan, *, verify: bool = True) -> Network:
        """A network of the same kind, with the tiles of a plan; see ``tiledse.convert``."""

    @abstractmethod
    def verify(self, plan: Plan) -> Verdict:
        """Try what ``convert`` would make, and give the figures.

        Raises:
            TiledSEError: see ``convert``.
        """

    @abstractmethod
    def write(self, plan: Plan, path: Path, form: Form) -> Written:
        """Write the network with the tiles, and corrections, of a plan; the file ends in ``file_ending``.

        Raises:
            TiledSEError: a form that the kind does not have, see ``convert``, or the file cannot be written.
        """

    @abstractmethod
    def tiled(self, plan: Plan) -> nn.Module:
        """The network with the tiles, and corrections, of a plan: images (N, C, H, W) to what it gives.

        To run it beside others: weights are shared where that is possible.
        """

    def begin(self, tiled: nn.Module) -> None:
        """Begin another stream on what ``tiled`` gave for a plan with ``previous``.

        Raises:
            TiledSEError: networks of this kind keep no states.
        """
        raise TiledSEError(f"networks of {self.kind} keep no state from frame to frame")

    @abstractmethod
    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """The SE network and one network for each plan, with what they have in common run once."""

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
    def rows(self, plan: Plan, blocks: Sequence[int]) -> Rows:
        """Row means of the maps that some blocks get, in the network with the tiles of a plan.

        Args:
            plan: The tiles.
            blocks: Numbers of blocks, rising. Nothing behind the last one is run.

        Returns:
            Images (N, C, H, W) to one array (N * calls, C, H), float32, for each block: the mean of each row of its
            map, call after call for a block that is called more than once. They hold the mean of every strip, and of
            the whole map.
        """

    @abstractmethod
    def squeeze(self, block: int, x: Tensor, tile: Tile) -> Tensor:
        """Descriptors (N, C, rows, cols) of a map (N, C, H, W), squeezed as the block does it."""

    @abstractmethod
    def excite(self, block: int, descriptors: Tensor) -> Tensor:
        """Gates of the block for descriptors (N, C, rows, cols), of the same shape."""

    def refuses(self, block: int) -> str | None:
        """Why a block's descriptors cannot be corrected, or None."""
        return None


@dataclass(frozen=True)
class Form:
    """How a converted network is to be written.

    Args:
        divisor_tiles: ONNX: tiles that divide their maps, at a fixed size.
        batch: ONNX: a fixed batch, at a fixed size; None leaves it as it is.
        ir_version: ONNX: the version of the file format; None leaves it as it is.
        alls: ONNX: where the line for a Hailo model script goes.
        verify: Whether to try what was made.
        force: Whether files that exist may be replaced.
        target: ONNX: what the form is for (``tiledse.targets``); None for ONNX Runtime's, without a report.
    """

    divisor_tiles: bool = False
    batch: int | None = None
    ir_version: int | None = None
    alls: Path | None = None
    verify: bool = True
    force: bool = False
    target: Target | str | Path | None = None

    def check_ending(self, path: Path) -> None:
        """Refuse what goes with ONNX only, where another file is to be written.

        Raises:
            TiledSEError: the first such option.
        """
        if path.suffix.lower() == ".onnx":
            return
        given = {
            "--divisor-tiles": self.divisor_tiles,
            "--alls": self.alls,
            "--batch": self.batch,
            "--ir-version": self.ir_version,
            "--target": self.target,
        }
        for option in (name for name, value in given.items() if value):
            raise TiledSEError(f"{option} goes with ONNX; give an output that ends in .onnx, got {path}")


@dataclass(frozen=True)
class Verdict:
    """What trying a converted network gave.

    Args:
        plan: What it really has: blocks that were refused keep the tile that they had.
        refused: Those, with the reason.
        difference: With one tile over each map, the largest difference of the outputs from those of the network as it
            was; None where no block has changed.
        seconds: What it took.
    """

    plan: Plan
    refused: tuple[NearMiss, ...]
    difference: float | None
    seconds: float | None


@dataclass(frozen=True)
class Written:
    """A converted network on disk, and what its verification gave.

    Args:
        plan: What it really has: blocks that were refused keep the tile that they had.
        refused: Those, with the reason.
        seconds: What verifying took; None where nothing was verified.
        path: The file.
    """

    plan: Plan
    refused: tuple[NearMiss, ...]
    seconds: float | None
    path: Path

    @property
    def converted(self) -> int:
        """Blocks that have tiles."""
        return sum(not tile.whole for tile in self.plan.tiles)

    @property
    def stays(self) -> tuple[NearMiss, ...]:
        """What gates the map that it pools, is no block that takes tiles, and so stays as it was."""
        return tuple(miss for miss in self.plan.near_misses if miss.gates)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the keys of ``convert``."""
        return {
            "converted": self.converted,
            "total": len(self.plan),
            "refused": [{"name": miss.name, "reason": miss.reason} for miss in self.refused],
            "near_misses": self.plan.to_dict()["near_misses"],
        }

    def lines(self) -> list[str]:
        """As text."""
        return [
            f"{self.converted} of {len(self.plan)} SE blocks have tiles now: {self.path}",
            *(f"block '{miss.name}' was left as it was: {miss.reason}" for miss in self.refused),
            *(f"'{miss.name}' takes no tiles and stays as it was: {miss.reason}" for miss in self.stays),
        ]


class SharedPrefix(ABC):
    """The SE network and some tiled forms of it: what comes before the first tiled block runs once an image.

    Attributes:
        unshared: Names of the blocks that nothing could be shared before; their networks run from the image on.
    """

    unshared: tuple[str, ...] = ()

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """What the SE network gives on (N, C, H, W), then what the network of each plan gives, in order."""


def check_images(plans: Sequence[Plan]) -> None:
    """Check that networks with these plans can be shown single images.

    Raises:
        TiledSEError: one runs on the frames of a stream.
    """
    for plan in plans:
        plan.check_single_images(
            "single images are no stream: evaluate frames in their order with --frames (frames=True), and images "
            "with a tile of one map, such as 7xW"
        )


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
        if tile.previous or tile.size(block.height, block.width) != (block.height, block.width):
            return number
    return None
