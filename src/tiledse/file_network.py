"""FileNetwork: what networks of all file formats have in common. Each runs on the CPU, in a runtime of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from .errors import TiledSEError
from .network import Given, Network
from .op.functional import squeeze
from .plan import NearMiss, Plan
from .tile import Tile

if TYPE_CHECKING:
    from torch import Tensor, nn


class Read(Protocol):
    """A network that was read from a file, or made from one."""

    @property
    def path(self) -> Path | None:
        """The file; None where it was none."""

    @property
    def name(self) -> str:
        """What messages call it."""


class Made(Protocol):
    """A network with the tiles of a plan."""

    @property
    def model(self) -> Any:
        """As it was made."""

    @property
    def refused(self) -> tuple[NearMiss, ...]:
        """Blocks that were left as they were, with the reason."""


class FileNetwork(Network):
    """A network in a file.

    Args:
        model: What was read.
        name: What tables call it; its file's name, where it is left out.
        threads: Threads of its runtime; 0 leaves them to it. Left out, they are torch's.
    """

    def __init__(self, model: Read, name: str | None, threads: int | None) -> None:
        self.name = name if name is not None else model.path.name if model.path is not None else model.name
        self.threads = torch.get_num_threads() if threads is None else threads
        self._tried: set[object] = set()

    def module(self, purpose: str) -> nn.Module:
        """See Network."""
        raise TiledSEError(
            f"{purpose} takes a network of PyTorch, and {self.name} is of {self.kind}; give the network that it was "
            "made from (timm:NAME --weights FILE)"
        )

    def squeeze(self, block: int, x: Tensor, tile: Tile) -> Tensor:
        """See Network; by torch, on the map that the runtime gave."""
        return squeeze(x, tile)

    def form(self, plan: Plan) -> Any:
        """The network with the tiles of a plan, in its own format. A block's tile is tried once in all plans.

        Raises:
            TiledSEError: a block cannot be converted.
        """
        wanted = {
            (block, tile, id(correction))
            for (block, tile), correction in zip(plan, plan.corrections, strict=True)
        }
        made = self._tile_se(plan, not wanted <= self._tried)
        if made.refused:
            miss = made.refused[0]
            raise TiledSEError(
                f"block '{miss.name}' cannot be converted: {miss.reason}; give it the tile HxW"
            )
        self._tried |= wanted
        return made.model

    @abstractmethod
    def _tile_se(self, plan: Plan, verify: bool) -> Made:
        """The network with plain SE, converted to a plan."""


Opened = TypeVar("Opened", bound=FileNetwork)


def check_named(name: str, given: Given) -> None:
    """Refuse weights for a file that has them.

    Raises:
        TiledSEError: there are some.
    """
    if given.weights is not None or given.pretrained:
        raise TiledSEError(f"{name} holds its weights; leave --weights and --pretrained out")


def opened(kind: Callable[..., Opened], runtime: str, model: Read, name: str | None, given: Given) -> Opened:
    """A network that was read, as its kind.

    Args:
        kind: A kind of network.
        runtime: What runs it.
        model: What was read.
        name: Its file's name, where it was named.
        given: What else is known of it.

    Raises:
        TiledSEError: an option goes with networks of PyTorch, or see the kind.
    """
    called = name or model.name
    if given.device not in (None, "cpu"):
        raise TiledSEError(f"{called} runs in {runtime} on the CPU; leave --device out")
    if given.example_inputs is not None:
        raise TiledSEError(f"{called} names its inputs; say with image which takes the image")
    return kind(model, given.input_size, name=given.name or name, threads=given.threads)
