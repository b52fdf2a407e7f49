"""An ONNX network as a module of torch, whose SE blocks are marked as those of a network of PyTorch are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ...errors import TiledSEError, first_line
from ...onnx.constants import Constants, run_node
from ...onnx.finder import Place, locate
from ...onnx.model import OnnxModel
from ...plan import Plan
from ..marks import excite, one_gate, scale, squeeze
from .operators import BY_NUMBERS, TABLE, Unread


def read_onnx(model: OnnxModel, plan: Plan, known: bool) -> tuple[nn.Module, Mapping[str, OnnxBlock]]:
    """Read an ONNX network with the tiles of a plan.

    Args:
        model: The network, with plain SE.
        plan: From ``find`` on it.
        known: Whether the height of the images is known; see ``marks``.

    Returns:
        A module of torch, images in, outputs out; and its blocks by name.

    Raises:
        TiledSEError: the plan is another network's, or has what is not read: numbers of a calibration, channels last.
    """
    found = locate(model, plan.input_size)
    plan.check_network(found.plan)
    if plan.calibrated:
        raise TiledSEError(
            f"{model.name}: calibrated plans of ONNX files are not streamed; leave the calibration out, or give the "
            "network of PyTorch"
        )
    network = OnnxNet(model)
    blocks = {}
    for block, tile, place in zip(plan.blocks, plan.tiles, found.places, strict=True):
        if place.squeeze.axes != (1, 2, 3) or place.layout != (0, 1, 2, 3) or place.squeeze.crop is not None:
            raise TiledSEError(
                f"block '{block.name}' of {model.name} has its channels last or squeezes a part of its map; "
                "it is not streamed"
            )
        blocks[block.name] = OnnxBlock(network, place)
        network.places[place.product] = block.name, tile, place, known
    network.blocks = blocks
    return network, blocks


class OnnxNet(nn.Module):
    """The nodes of an ONNX graph by operators of torch.

    Attributes:
        places: By product of a block, its name, tile and place, and whether the height is known.
        blocks: By name.
    """

    def __init__(self, model: OnnxModel) -> None:
        super().__init__()
        self.name, self.graph, self.opsets = model.name, model.ir.graph, model.ir.opset_imports
        self.places: dict[ir.Node, tuple[str, Any, Place, bool]] = {}
        self.blocks: dict[str, OnnxBlock] = {}
        inputs = [v for v in self.graph.inputs if not v.is_initializer()]
        if len(inputs) != 1:
            raise TiledSEError(f"{self.name} takes {len(inputs)} inputs; streaming takes an image alone")
        self.image = inputs[0]
        self.kept: dict[ir.Value, str] = {}
        self.arrays: dict[ir.Value, np.ndarray] = {}
        constants = Constants(model.ir)
        for node in self.graph:
            for value in node.inputs:
                if value is not None and value in constants and value not in self.arrays:
                    self._keep(value, constants.array(value))

    def _keep(self, value: ir.Value, array: np.ndarray | None) -> None:
        """A constant; of floats it is a buffer as well."""
        if array is None:
            return  # asked for only if a node needs it
        self.arrays[value] = array
        if array.dtype.kind == "f":
            self.kept[value] = f"weight{len(self.kept)}"
            self.register_buffer(self.kept[value], torch.from_numpy(np.array(array)))

    def constants(self) -> dict[ir.Value, Any]:
        """All that is known before the image is."""
        return {**self.arrays, **{value: getattr(self, name) for value, name in self.kept.items()}}

    def forward(self, x: Tensor) -> Any:
        """(N, C, H, W), of sound (N, C, T), to the outputs, in a tuple where they are several."""
        values = self.constants()
        values[self.image] = x
        order = {node: index for index, node in enumerate(self.graph)}
        needed: set[ir.Node] = set()
        waiting = [v.producer() for v in self.graph.outputs]
        while waiting:
            node = waiting.pop()
            if node is None or node in needed or all(v in values for v in node.outputs):
                continue
            needed.add(node)
            waiting += [v.producer() for v in self.reads(node) if v is not None]
        for node in sorted(needed, key=order.__getitem__):
            self.run(node, values)
        outputs = tuple(values[v] for v in self.graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def reads(self, node: ir.Node) -> list[ir.Value | None]:
        """The values that a node reads; a product of a block reads the map in place of the gates."""
        if node not in self.places:
            return list(node.inputs)
        _, _, place, _ = self.places[node]
        return [node.inputs[1 - place.slot], place.squeeze.source]

    def run(self, node: ir.Node, values: dict[ir.Value, Any]) -> None:
        """Compute the outputs of a node."""
        if node in self.places:
            name, tile, place, known = self.places[node]
            source, other = values[place.squeeze.source], values[node.inputs[1 - place.slot]]  # type: ignore[index]
            text = one_gate(tile, int(source.shape[2]), known)
            gates = excite(squeeze(source, text, "mean", name), name)
            values[node.outputs[0]] = scale(other, gates, text, name)
            return
        numbers = [None if v is None else self.arrays.get(v, values.get(v)) for v in node.inputs]
        if node.op_type == "Shape" and isinstance(numbers[0], Tensor):
            shape = np.array([int(side) for side in numbers[0].shape], np.int64)
            values[node.outputs[0]] = shape[_part(node)]
            return
        if not any(isinstance(part, Tensor) for part in numbers):
            self.compute(node, numbers, values)
            return
        given = [None if v is None else _tensor(values[v]) for v in node.inputs]
        if node.op_type in BY_NUMBERS:
            given[1:] = numbers[1:]
        operator = TABLE.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None:
            raise TiledSEError(
                f"{self.name}: operator {node.op_type} ('{node.name}') is not read for streaming"
            )
        try:
            result = operator(node, *given)
        except Unread as error:
            raise TiledSEError(f"{self.name}: {node.op_type} '{node.name}' is not read: {error}") from error
        results = result if isinstance(result, (tuple, list)) else (result,)
        values.update(zip(node.outputs, results))

    def compute(self, node: ir.Node, given: list[Any], values: dict[ir.Value, Any]) -> None:
        """A node whose operands are all known."""
        for out in node.outputs:
            array = run_node(node, given, self.opsets, out)
            if array is None:
                raise TiledSEError(
                    f"{self.name}: {node.op_type} '{node.name}' of constants cannot be computed"
                )
            values[out] = array


class OnnxBlock:
    """An SE block of an ONNX network: its excitation.

    Args:
        network: The network.
        place: Where it stands.
    """

    def __init__(self, network: OnnxNet, place: Place) -> None:
        self.network, self.place = network, place

    def excite(self, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape."""
        excitation, squeezed = self.place.excitation, self.place.squeeze
        images, channels, rows, cols = descriptors.shape
        values = self.network.constants()
        given = descriptors
        if not excitation.in_place:
            # One descriptor a channel: each tile is an image of its own.
            given = descriptors.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
            rank = squeezed.descriptors.shape
            if rank is not None and len(rank) != 4:
                given = given.reshape(-1, channels)
        values[squeezed.descriptors] = given
        try:
            for node in excitation.nodes:
                self.network.run(node, values)
            gates: Tensor = values[excitation.gate]
            if excitation.in_place:
                return gates
            return gates.reshape(images, rows, cols, channels).permute(0, 3, 1, 2)
        except RuntimeError as error:
            raise TiledSEError(
                f"block '{squeezed.node.name}' of {self.network.name}: its excitation takes one tile at a time only "
                f"({first_line(error, 100)}); it is not streamed"
            ) from error


def _tensor(value: Any) -> Any:
    """Numbers with a point as torch takes them."""
    floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return torch.from_numpy(np.array(value)) if floats else value


def _part(node: ir.Node) -> slice:
    """Which axes a Shape gives."""
    from ...onnx.nodes import integer

    end = node.attributes.get("end")
    return slice(integer(node, "start", 0), None if end is None else int(end.as_int()))
