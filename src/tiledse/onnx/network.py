"""OnnxNetwork: an ONNX network, as every verb takes it; it runs in ONNX Runtime, on the CPU."""

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
from ..network import Form, SharedPrefix, Verdict, Written, check_images
from ..plan import Plan
from ..refusing import warn_of
from .branches import Cut, Probed
from .converter import Converted, convert, convert_verified
from .excitations import excitation
from .finder import Finding, fingerprint, locate
from .graph import Graph, with_outputs
from .model import OnnxModel
from .runner import OnnxModule
from .scales import quantised
from .writing import write

if TYPE_CHECKING:
    from ..network import Rows, See
    from .probe import Probe


class OnnxNetwork(FileNetwork):
    """An ONNX network.

    Args:
        model: The network, SE or converted; where plain SE is asked for, blocks that have tiles run as plain SE.
        input_size: (C, H, W) of its images; needed where the file leaves height or width free.
        name: What tables call it; its file's name, where it is left out.
        threads: Threads of ONNX Runtime; 0 leaves it to it. Left out, they are torch's.
        found: Its plan and the fingerprint of its weights, for those who have them.

    Raises:
        TiledSEError: the network has no image input, or ONNX Runtime does not take it.
    """

    kind: ClassVar[str] = "ONNX"
    file_ending: ClassVar[str] = ".onnx"

    def __init__(
        self,
        model: OnnxModel,
        input_size: Sequence[int] | None = None,
        *,
        name: str | None = None,
        threads: int | None = None,
        found: tuple[Plan, str] | None = None,
    ) -> None:
        if found is None:
            self._found = locate(model, input_size)
            self.plan = self._found.plan
        else:
            self.plan, self.weights = found
        self.given: OnnxModel = model
        super().__init__(model, name, threads)
        self._excitations: dict[int, Graph] = {}

    @cached_property
    def model(self) -> OnnxModel:
        """The network with plain SE."""
        return convert(self.given, self.se) if any(not t.whole for t in self.plan.tiles) else self.given

    @cached_property
    def _found(self) -> Finding:
        """What was found in the network as it was given."""
        return locate(self.given, self.plan.input_size)

    @cached_property
    def _located(self) -> Finding:
        """What is found in the network with plain SE."""
        return self._found if self.model is self.given else locate(self.model, self.plan.input_size)

    @cached_property
    def weights(self) -> str:
        """See Network."""
        return fingerprint(self._found, self.given)

    @cached_property
    def probe(self) -> Probe:
        """The network, opened once for all plans of row strips."""
        from .probe import Probe

        return Probe(self.model, self.se, self.threads)

    def convert(self, plan: Plan, *, verify: bool = True) -> OnnxNetwork:
        """See Network."""
        made = convert_verified(self.given, plan, verify=verify, found=self._found)
        warn_of(made.refused)
        found = replace(made.plan, near_misses=self.plan.near_misses, network=self.plan.network), self.weights
        return OnnxNetwork(made.model, plan.input_size, name=self.name, threads=self.threads, found=found)

    def verify(self, plan: Plan) -> Verdict:
        """See Network."""
        made = convert_verified(self.given, plan, found=self._found)
        proof = made.proof
        return Verdict(made.plan, made.refused, None if proof is None else proof.difference, made.seconds)

    @property
    def files(self) -> tuple[Path, ...]:
        """See Network."""
        return self.given.data_files

    def write(self, plan: Plan, path: Path, form: Form) -> Written:
        """See Network; ``writing.write``."""
        return write(self.given, plan, path, form, self._found)

    def _tile_se(self, plan: Plan, verify: bool) -> Converted:
        return convert_verified(self.model, plan, verify=verify, found=self._located)

    def tiled(self, plan: Plan) -> nn.Module:
        """See Network."""
        return OnnxModule(self.form(plan), self.threads)

    def begin(self, tiled: nn.Module) -> None:
        """See Network."""
        assert isinstance(tiled, OnnxModule)
        tiled.reset_frames()

    def branches(self, plans: Sequence[Plan]) -> SharedPrefix:
        """See Network. Strips of rows run in the probe; columns and patches in networks that are cut in two.

        So do quantised blocks: with tiles their descriptors have another scale than in the SE network.
        """
        check_images(plans)
        whole = not any(quantised(place) for place in self._located.places)
        if whole and all(tile.width is None for plan in plans for tile in plan.tiles):
            return Probed(self.probe, plans)
        return Cut(self.model, plans, [self.form(plan) for plan in plans], self.threads)

    def observe(self, inputs: Tensor, see: See) -> Any:
        """See Network; the maps of all blocks are held for one batch."""
        sources = [place.squeeze.source.name or "" for place in self._located.places]
        outputs = self._observer.outputs[: -len(sources)] if sources else self._observer.outputs
        got = self._observer.run({self._observer.inputs[0]: inputs.cpu().numpy()})
        for number, (place, source) in enumerate(zip(self._located.places, sources)):
            see(number, torch.from_numpy(got[source]).permute(0, *place.squeeze.axes))
        results = tuple(torch.from_numpy(got[name]) for name in outputs)
        return results[0] if len(results) == 1 else results

    @cached_property
    def _observer(self) -> Graph:
        sources = [place.squeeze.source.name or "" for place in self._located.places]
        return Graph(with_outputs(self.model.to_proto(), sources), self.threads)

    def rows(self, plan: Plan, blocks: Sequence[int]) -> Rows:
        """See Network."""
        check_images([plan])
        feeds = self.probe.feeds(plan)
        return lambda inputs: self.probe.rows(inputs.cpu().numpy(), feeds, blocks)

    def refuses(self, block: int) -> str | None:
        """See Network."""
        if quantised(self._located.places[block]):
            return "its descriptors are quantised, and a correction may leave the range of its map"
        return None

    def excite(self, block: int, descriptors: Tensor) -> Tensor:
        """See Network; the nodes of the excitation, cut out of the network."""
        if not self._excitations:
            # In the form for strips of one row: there every excitation takes a grid of descriptors.
            strips = self.form(self.se.with_tile("1xW"))
            found = locate(strips, self.plan.input_size)
            for number, place in enumerate(found.places):
                proto = excitation(place, found.constants, strips.opset)
                self._excitations[number] = Graph(proto, self.threads)
        graph = self._excitations[block]
        feeds = {graph.inputs[0]: np.ascontiguousarray(descriptors.float().cpu().numpy())}
        return torch.from_numpy(graph.run(feeds)[graph.outputs[0]])
