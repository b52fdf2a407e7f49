"""TorchNetwork: a network of PyTorch, as every verb takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..network import Form, Network, SharedPrefix, Verdict, Written, check_images
from ..op.functional import squeeze
from ..op.module import TiledSqueezeExcite
from ..plan import Plan
from ..refusing import warn_of
from ..tile import Tile
from .converter import Converted, Found, convert_shared, convert_verified, correctable, fingerprint
from .dialects import Dialect
from .finder import find_dialects
from .frames import reset_frames
from .modes import evaluating, in_eval
from .replay import Replayed
from .writing import write

if TYPE_CHECKING:
    from ..network import Rows, See


class TorchNetwork(Network):
    """A PyTorch network.

    Args:
        model: The network, SE or converted; it is left as it was. Where plain SE is asked for, blocks that have tiles
            run as plain SE.
        input_size: (C, H, W) of its images. Left out, it is the one that timm gave the network.
        name: What tables call it; its class, where it is left out.
        random: Whether its weights are random.
        config: What it says of its images; its ``pretrained_cfg``, where it is left out.
        example_inputs: See ``find``.
        found: What ``find_dialects`` gave on this very network, for those who have it.

    Raises:
        TiledSEError: the network refuses the input.

    Example:
        >>> import timm
        >>> network = TorchNetwork(timm.create_model("regnety_002").eval(), (3, 64, 64))
        >>> shapes = []
        >>> _ = network.observe(torch.zeros(1, 3, 64, 64), lambda block, x: shapes.append(tuple(x.shape)))
        >>> shapes[0], len(shapes)
        ((1, 24, 16, 16), 13)
    """

    kind: ClassVar[str] = "PyTorch"
    says_images: ClassVar[bool] = True
    file_ending: ClassVar[str] = ".safetensors"
    exports: ClassVar[bool] = True
    casts: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        input_size: Sequence[int] | None = None,
        *,
        name: str | None = None,
        random: bool = False,
        config: Mapping[str, Any] | None = None,
        example_inputs: Any = None,
        found: Found | None = None,
    ) -> None:
        self.plan, self.dialects = found or find_dialects(model, input_size, example_inputs)
        self.given: nn.Module = model
        self.name = name if name is not None else type(model).__name__
        self.random = random
        self.config = config if config is not None else getattr(model, "pretrained_cfg", None)
        self.example_inputs = example_inputs

    @cached_property
    def model(self) -> nn.Module:
        """The network with plain SE, its weights those of the network given, each block a child by its name."""
        if not len(self.plan):
            return self.given
        return convert_shared(self.given, self.se, (self.plan, self.dialects))

    @cached_property
    def weights(self) -> str:
        """See Network."""
        return fingerprint(self.given)

    @property
    def device(self) -> str:
        """See Network."""
        return str(next((p.device for p in self.given.parameters()), torch.device("cpu")))

    def module(self, purpose: str) -> nn.Module:
        """See Network: the very one that was given."""
        return self.given

    def convert(self, plan: Plan, *, verify: bool = True) -> TorchNetwork:
        """See Network."""
        made = self.converted(plan, verify)
        warn_of(made.refused)
        return TorchNetwork(
            made.model, plan.input_size, name=self.name, random=self.random, config=self.config,
            example_inputs=self.example_inputs, found=(replace(made.plan, network=self.plan.network), self.dialects),
        )  # fmt: skip

    def verify(self, plan: Plan) -> Verdict:
        """See Network."""
        made = self.converted(plan, True)
        return Verdict(made.plan, made.refused, made.difference, made.seconds)

    def converted(self, plan: Plan, verify: bool) -> Converted:
        """``converter.convert_verified``, without another look for blocks."""
        return convert_verified(
            self.given,
            plan,
            verify=verify,
            example_inputs=self.example_inputs,
            found=(self.plan, self.dialects),
        )

    def write(self, plan: Plan, path: Path, form: Form) -> Written:
        """See Network; ``writing.write``."""
        return write(self, plan, path, form)

    def tiled(self, plan: Plan) -> nn.Module:
        """See Network; parameters and buffers are those of the model given."""
        return in_eval(convert_shared(self.model, plan, (self.se, self.dialects)))

    def block(self, number: int) -> nn.Module:
        """The module of an SE block, in the network with plain SE."""
        return self.model.get_submodule(self.plan.blocks[number].name)

    def begin(self, tiled: nn.Module) -> None:
        """See Network."""
        reset_frames(tiled)

    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """See Network; ``replay.Replayed``."""
        check_images(plans)
        return Replayed(self.model, plans, [self.tiled(plan) for plan in plans])

    def observe(self, inputs: Tensor, see: See) -> Any:
        """See Network; one map is held at a time."""

        def watch(number: int, dialect: Dialect) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                see(number, dialect.rows(args[0]))

            return hook

        handles = [
            self.block(number).register_forward_pre_hook(watch(number, dialect))
            for number, dialect in enumerate(self.dialects)
        ]
        try:
            with evaluating(self.model), torch.no_grad():
                return self.model(inputs)
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, plan: Plan, blocks: Sequence[int]) -> Rows:
        """See Network."""
        check_images([plan])
        model = self.tiled(plan)
        calls = sum(plan.blocks[block].calls for block in blocks)

        def look(inputs: Tensor) -> list[np.ndarray]:
            seen: dict[int, list[np.ndarray]] = {block: [] for block in blocks}

            def watch(block: int) -> Any:
                def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                    x = self.dialects[block].rows(args[0].detach().float())
                    seen[block].append(x.mean(3).cpu().numpy())
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

    def squeeze(self, block: int, x: Tensor, tile: Tile) -> Tensor:
        """See Network."""
        return squeeze(x, tile, self.dialects[block].squeeze(self.block(block)))

    def excite(self, block: int, descriptors: Tensor) -> Tensor:
        """See Network."""
        module = self.block(block)
        with evaluating(module), torch.no_grad():
            if isinstance(module, TiledSqueezeExcite):
                return module.excite(descriptors)
            return self.dialects[block].excite(module, descriptors)

    def refuses(self, block: int) -> str | None:
        """See Network."""
        if not correctable(self.block(block), self.dialects[block]):
            return "its squeeze is no mean, or it was built with tiles and is to be trained instead"
        return None


class _Seen(Exception):
    """All rows that were asked for are there."""
