"""TfliteNetwork: a TensorFlow Lite network, as every verb takes it; it runs in LiteRT, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..file_network import FileNetwork
from ..network import Form, SharedPrefix, Verdict
from ..plan import Plan
from ..refusing import warn_of
from .branches import Cut
from .converter import Converted, convert_verified
from .cutting import cut, with_outputs
from .finder import Finding, fingerprint, locate
from .model import TfliteModel
from .module import TfliteModule, maps_of, sizes_of, to_file, to_torch
from .running import Runner, feeds_of
from .tiling import with_tiles
from .trying import tried
from .writing import TfliteWritten, write

if TYPE_CHECKING:
    from ..network import Rows, See


class TfliteNetwork(FileNetwork):
    """A TensorFlow Lite network.

    Args:
        model: The network, SE or converted; where plain SE is asked for, blocks that have tiles run as plain SE.
        input_size: (C, H, W) of its images; needed where the file leaves height or width open.
        name: What tables call it; its file's name, where it is left out.
        threads: Threads of LiteRT; 0 leaves them to it. Left out, they are torch's.

    Raises:
        TiledSEError: the network has no image input, or LiteRT does not take it where its shapes are open.
    """

    kind: ClassVar[str] = "TensorFlow Lite"
    file_ending: ClassVar[str] = ".tflite"

    def __init__(
        self,
        model: TfliteModel,
        input_size: Sequence[int] | None = None,
        *,
        name: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._found = locate(model, input_size)
        self.plan = self._found.plan
        self.given: TfliteModel = self._found.model
        super().__init__(model, name, threads)

    @cached_property
    def weights(self) -> str:
        """See Network."""
        return fingerprint(self._found)

    @cached_property
    def _safe(self) -> Finding:
        """What was found in the network as it was given, after another process has run it."""
        if self.given.tried:
            return self._found
        image = self._found.image
        model = tried(self.given, sizes_of(self._found.graph, image))
        return locate(model, self.plan.input_size)

    @cached_property
    def _se(self) -> Finding:
        """What is found in the network with plain SE."""
        if all(tile.whole for tile in self.plan.tiles):
            return self._safe
        return locate(with_tiles(self._safe, self.se), self.plan.input_size)

    @cached_property
    def _exact(self) -> bool:
        """Whether XNNPACK refuses the network: then no part of it runs there either, since it rounds otherwise."""
        found = self._se
        return Runner(found.model, self.threads, sizes=sizes_of(found.graph, found.image)).exact

    def convert(self, plan: Plan, *, verify: bool = True) -> TfliteNetwork:
        """See Network."""
        made = convert_verified(self._safe, plan, verify=verify)
        warn_of(made.refused)
        return TfliteNetwork(made.model, plan.input_size, name=self.name, threads=self.threads)

    def verify(self, plan: Plan) -> Verdict:
        """See Network."""
        made = convert_verified(self._safe, plan)
        return Verdict(made.plan, made.refused, made.difference, made.seconds)

    @property
    def files(self) -> tuple[Path, ...]:
        """See Network."""
        return () if self.given.path is None else (self.given.path,)

    def write(self, plan: Plan, path: Path, form: Form) -> TfliteWritten:
        """See Network; ``writing.write``."""
        form.check_ending(path)
        return write(self._safe, plan, path, form)

    def _tile_se(self, plan: Plan, verify: bool) -> Converted:
        return convert_verified(self._se, plan, verify=verify)

    def tiled(self, plan: Plan) -> nn.Module:
        """See Network."""
        return TfliteModule(self.form(plan), self._se.image, self.threads, self._exact)

    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """See Network."""
        return Cut(self._se, plans, [self.form(plan) for plan in plans], self.threads, self._exact)

    def observe(self, inputs: Tensor, see: See) -> Any:
        """See Network; the maps of all blocks are held for one batch."""
        found, (runner, given) = self._se, self._observer
        parts = []
        for image in to_file(found.graph, found.image, inputs):
            feeds = feeds_of(found.model, found.image.tensor, image)
            parts.append(dict(zip(given, runner(feeds), strict=True)))
        joined = {t: np.concatenate([part[t] for part in parts]) for t in given}
        for number, place in enumerate(found.places):
            see(number, to_torch(found.graph, place.source, joined[place.source]))
        results = tuple(to_torch(found.graph, t, joined[t]) for t in found.graph.outputs)
        return results[0] if len(results) == 1 else results

    @cached_property
    def _observer(self) -> tuple[Runner, list[int]]:
        found = self._se
        tapped = with_outputs(found.model, [place.source for place in found.places])
        given = [int(t) for t in tapped.tree.subgraphs[0].outputs]
        return Runner(
            tapped, self.threads, exact=self._exact, sizes=sizes_of(found.graph, found.image)
        ), given

    def rows(self, plan: Plan, blocks: Sequence[int]) -> Rows:
        """See Network."""
        found = self._se
        form = self.form(plan)
        sources = [found.places[block].source for block in blocks]
        graph, runner = maps_of(form, found.image, sources, self.threads, self._exact)
        order = list(dict.fromkeys(sources))

        def rows(inputs: Tensor) -> list[np.ndarray]:
            maps: dict[int, list[np.ndarray]] = {t: [] for t in order}
            for image in to_file(found.graph, found.image, inputs):
                feeds = feeds_of(form, found.image.tensor, image)
                got = runner({t: feeds[t] for t in runner.given})
                for tensor, array in zip(order, got, strict=True):
                    maps[tensor].append(array)
            means = {
                t: to_torch(graph, t, np.concatenate(arrays)).mean(3).float().numpy()
                for t, arrays in maps.items()
            }
            return [means[source] for source in sources]

        return rows

    def excite(self, block: int, descriptors: Tensor) -> Tensor:
        """See Network; the operators of the excitation, cut out of the network in the form that takes a grid."""
        n, channels, rows, cols = descriptors.shape
        place = self._grids.places[block]
        count = n * rows * cols
        key = block, count
        if key not in self._excitations:
            shape = {place.descriptors: (1, count, 1, channels)}
            part = cut(self._grids.model, [place.descriptors], [place.excitation.gate], shape)
            self._excitations[key] = Runner(part, self.threads, exact=self._exact)
        graph = self._grids.graph
        flat = descriptors.detach().float().cpu().permute(0, 2, 3, 1).reshape(1, count, 1, channels).numpy()
        quantised = graph.quantised(place.descriptors)
        given = flat if quantised is None else quantised.whole(flat, graph.dtype(place.descriptors))
        (gates,) = self._excitations[key]({place.descriptors: given})
        scale = graph.quantised(place.excitation.gate)
        real = gates if scale is None else scale.real(gates)
        return torch.from_numpy(real.reshape(n, rows, cols, channels)).permute(0, 3, 1, 2).float()

    @cached_property
    def _excitations(self) -> dict[tuple[int, int], Runner]:
        return {}

    @cached_property
    def _grids(self) -> Finding:
        """The network with strips of one row: there every excitation takes a grid of descriptors."""
        strips = with_tiles(self._se, self.se, frozenset(block.name for block in self.plan.blocks))
        return locate(replace(strips, tried=True), self.plan.input_size)
