"""One view of a PyTorch and of an ONNX network: run it with the tiles of a plan, and see the rows of its maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TiledSEError
from ..networks.converter import convert_shared, correctable, fingerprint
from ..networks.finder import find_dialects
from ..networks.modes import evaluating, in_eval
from ..networks.subject import SharedPrefix, Subject, TorchSubject, first_tiled
from ..plan import Plan

if TYPE_CHECKING:
    from ..onnx import OnnxModel

Rows = Callable[[Tensor], "list[np.ndarray]"]


class Network(ABC):
    """A network under choice.

    Attributes:
        plan: Its SE blocks, each with the tile ``HxW``.
        weights: Its fingerprint.
    """

    plan: Plan
    weights: str

    @abstractmethod
    def run(self, plan: Plan) -> nn.Module:
        """The network with the tiles, and corrections, of a plan: images (N, C, H, W) to what it gives."""

    @abstractmethod
    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """The SE network and one network for each plan, with what they have in common run once."""

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

    def refuses(self, block: int) -> str | None:
        """Why a block's descriptors cannot be corrected, or None."""
        return None


def network_of(subject: Subject) -> Network:
    """The network of a subject of measurement, to choose its tiles.

    Raises:
        TiledSEError: it has no SE block.
    """
    plan = subject.plan
    if not len(plan):
        raise TiledSEError(
            f"the network has no squeeze-and-excite block ({len(plan.near_misses)} near misses; `tiledse find` gives "
            "the reasons)"
        )
    if isinstance(subject, TorchSubject):
        return TorchNetwork(subject.model, plan.input_size)
    return OnnxNetwork(subject.model, plan.input_size)  # type: ignore[attr-defined]


def open_network(model: nn.Module | OnnxModel, input_size: Sequence[int] | None = None) -> Network:
    """The network of a PyTorch module or an ONNX model, to choose its tiles.

    Raises:
        TiledSEError: it refuses the input size.
    """
    return TorchNetwork(model, input_size) if isinstance(model, nn.Module) else OnnxNetwork(model, input_size)


class _Seen(Exception):
    """All rows that were asked for are there."""


class TorchNetwork(Network):
    """A PyTorch network; it is left as it was."""

    def __init__(self, model: nn.Module, input_size: Sequence[int] | None = None) -> None:
        found, self._dialects = find_dialects(model, input_size)
        self.plan = found.with_tile("HxW") if len(found) else found
        self.model = convert_shared(model, self.plan, (found, self._dialects)) if len(found) else model
        self._subject: TorchSubject | None = None
        self.weights = fingerprint(model)

    def run(self, plan: Plan) -> nn.Module:
        """See Network; parameters are shared."""
        return in_eval(convert_shared(self.model, plan))

    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """See Network."""
        if self._subject is None:
            self._subject = TorchSubject(self.model, self.plan.input_size)
        return self._subject.branches(plans)

    def rows(self, plan: Plan, blocks: Sequence[int]) -> Rows:
        """See Network."""
        model = self.run(plan)
        calls = sum(plan.blocks[block].calls for block in blocks)

        def look(inputs: Tensor) -> list[np.ndarray]:
            seen: dict[int, list[np.ndarray]] = {block: [] for block in blocks}

            def watch(block: int) -> Any:
                def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                    x = args[0].detach().float()
                    nhwc = self._dialects[block].nhwc
                    seen[block].append((x.mean(2).transpose(1, 2) if nhwc else x.mean(3)).cpu().numpy())
                    if sum(map(len, seen.values())) == calls:
                        raise _Seen

                return hook

            handles = [
                model.get_submodule(plan.blocks[block].name).register_forward_pre_hook(watch(block))
                for block in blocks
            ]
            try:
                with evaluating(model), torch.no_grad():
                    model(inputs)
            except _Seen:
                pass
            finally:
                for handle in handles:
                    handle.remove()
            return [np.concatenate(found) for found in seen.values()]

        return look

    def refuses(self, block: int) -> str | None:
        """See Network."""
        module = self.model.get_submodule(self.plan.blocks[block].name)
        if not correctable(module, self._dialects[block]):
            return "its squeeze is no mean, or it was built with tiles and is to be trained instead"
        return None


class OnnxNetwork(Network):
    """An ONNX network, in ONNX Runtime on one thread."""

    def __init__(self, model: OnnxModel, input_size: Sequence[int] | None = None) -> None:
        from ..onnx import finder

        found = finder.locate(model, input_size)
        self.plan = found.plan.with_tile("HxW") if len(found.plan) else found.plan
        self.model = model
        self._probe: Any = None
        self.weights = finder.fingerprint(found, model)

    @property
    def probe(self) -> Any:
        """The network, opened once for all plans of row strips."""
        if self._probe is None:
            from ..onnx.probe import Probe

            self._probe = Probe(self.model, self.plan)
        return self._probe

    def run(self, plan: Plan) -> nn.Module:
        """See Network."""
        from .. import onnx as room
        from ..onnx.probe import ProbedModule

        if any(tile.width is not None for tile in plan.tiles):
            return room.OnnxModule(room.convert(self.model, plan), threads=1)
        return ProbedModule(self.probe, plan)

    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """See Network; columns and patches are no matter of the probe, and are run whole."""
        return _Probed(self, plans)

    def rows(self, plan: Plan, blocks: Sequence[int]) -> Rows:
        """See Network."""
        feeds = self.probe.feeds(plan)
        return lambda inputs: self.probe.rows(inputs.cpu().numpy(), feeds, blocks)


class _Probed(SharedPrefix):
    """``SharedPrefix`` of an ONNX network by its probe.

    ONNX Runtime fuses other operators in parts than in a whole network, so results are equal but for rounding.
    """

    def __init__(self, network: OnnxNetwork, plans: Sequence[Plan]) -> None:
        self.probe = network.probe
        strips = [all(tile.width is None for tile in plan.tiles) for plan in plans]
        self.feeds = [self.probe.feeds(plan) for plan, own in zip(plans, strips, strict=True) if own]
        self.firsts = [first_tiled(plan) for plan, own in zip(plans, strips, strict=True) if own]
        self.whole_networks = [
            None if own else network.run(plan) for plan, own in zip(plans, strips, strict=True)
        ]
        if not all(strips):
            self.whole = tuple(block.name for block in network.plan.blocks)

    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """See SharedPrefix."""
        forms = iter(self.probe.run_forms(inputs.cpu().numpy(), self.feeds, self.firsts))
        yield _outputs(next(forms))
        for network in self.whole_networks:
            yield _outputs(next(forms)) if network is None else network(inputs)


def _outputs(arrays: Sequence[np.ndarray]) -> Any:
    given = tuple(torch.from_numpy(array) for array in arrays)
    return given[0] if len(given) == 1 else given
