"""Read the excitation: all that lies between the descriptors and the product with the map.

Nothing in it is a fixed pattern. Whatever computes gates from descriptors by dense layers and elementwise functions is
an excitation, whichever exporter spelt it; so hard-swish and hard-sigmoid need no list of their spellings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import onnx_ir as ir

from .constants import Constants
from .indexing import INDEXING, takes_all
from .nodes import Miss, integer, ints
from .shapes import Shapes

ELEMENTWISE = {
    "Abs", "Add", "Cast", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
NORMS = {"BatchNormalization"}
# They hand on the values of their first input in another shape.
RESHAPES = {
    "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", *INDEXING,
}  # fmt: skip
DENSE = {"Conv", "Gemm", "MatMul"}
# With one constant scale they keep one number a channel and tile.
PAIRED = {"QuantizeLinear", "DequantizeLinear"}
QUANTISED = {*PAIRED, "DynamicQuantizeLinear"}
_LONGEST = 64


class Dense(NamedTuple):
    """A dense layer: ``outputs`` x ``inputs`` weights."""

    node: ir.Node
    inputs: int
    outputs: int
    bias: bool


@dataclass(frozen=True)
class Excitation:
    """An excitation, as it stands in a graph.

    Attributes:
        nodes: Its nodes, in order.
        gate: The value that holds the gates.
        user: The node that takes them.
        slot: Which input of ``user`` they are.
        layers: Its dense layers, in order.
        in_place: Whether it computes on (N, C, rows, cols) as it stands, for any grid of tiles.
    """

    nodes: tuple[ir.Node, ...]
    gate: ir.Value
    user: ir.Node
    slot: int
    layers: tuple[Dense, ...]
    in_place: bool

    @property
    def reduced(self) -> int | None:
        """Width between the layers; None for one layer."""
        return self.layers[0].outputs if len(self.layers) > 1 else None

    @property
    def macs(self) -> int:
        """Multiply-adds for one descriptor, one for each bias among them."""
        return sum(d.inputs * d.outputs + (d.outputs if d.bias else 0) for d in self.layers)


class ExcitationReader:
    """Reads the excitations of one graph."""

    def __init__(self, constants: Constants, shapes: Shapes) -> None:
        self.constants = constants
        self.shapes = shapes

    def read(
        self, descriptors: ir.Value, channels: int, plain: bool, ends: Callable[[ir.Node], bool]
    ) -> Excitation:
        """Follow descriptors to the node that ends the excitation.

        Args:
            descriptors: Their value.
            channels: How many channels they have.
            plain: One descriptor a channel, in any shape; else (N, C, rows, cols) for a grid.
            ends: Whether a node that takes gates and something else is the product, or leads to it.

        Raises:
            Miss: this is no excitation; why.
        """
        nodes, frontier, seen = self._follow(descriptors, plain)
        users = [node for node in frontier if ends(node)]
        if len(users) != 1 or len(frontier) > 1:
            raise self._no_end(frontier, users, seen)
        user = users[0]
        slots = [i for i, v in enumerate(user.inputs) if v in seen]
        if len(slots) != 1:
            raise Miss(f"its gate is multiplied with itself in {user.op_type} '{user.name}'")
        for value in seen:
            if value.is_graph_output():
                raise Miss(f"'{value.name}', within it, is an output of the network")
        gate = user.inputs[slots[0]]
        assert gate is not None
        extra = [n for n in nodes if not any(v is gate or list(v.uses()) for v in n.outputs)]
        if extra:
            nodes = [n for n in nodes if n not in extra]
        layers = self._layers(nodes, channels)
        if not layers:
            raise Miss("no dense layer (1x1 convolution, Gemm or MatMul) lies between its mean and its gate")
        if layers[-1].outputs != channels and layers[-1].outputs != 1:
            raise Miss(f"its last layer gives {layers[-1].outputs} values for {channels} channels")
        if layers[-1].outputs != channels:
            raise Miss("it has one gate for all channels")
        in_place = self._in_place(descriptors, nodes)
        if not in_place and any(node.op_type in PAIRED for node in nodes):
            raise Miss(
                "its excitation is quantised and takes one descriptor a channel, not a grid of them (1x1 convolutions "
                "would); tile the float network and quantise that"
            )
        if not in_place:
            if not plain:
                raise Miss("its excitation takes one descriptor a channel, and it has a grid of tiles")
            self._check_vector(descriptors, nodes)
        return Excitation(tuple(nodes), gate, user, slots[0], layers, in_place)

    def _follow(self, start: ir.Value, plain: bool) -> tuple[list[ir.Node], list[ir.Node], set[ir.Value]]:
        """Nodes that depend on the descriptors alone, the nodes that they end in, and all values on the way."""
        seen: set[ir.Value] = {start}
        nodes: list[ir.Node] = []
        waiting: dict[ir.Node, None] = {use.node: None for use in start.uses()}
        moved = True
        while moved and len(nodes) <= _LONGEST:
            moved = False
            for node in list(waiting):
                if node.op_type in ("Shape", "Size"):
                    del waiting[node]
                    moved = True
                elif node.graph is start.producer().graph and self._belongs(node, seen, plain):  # type: ignore[union-attr]
                    del waiting[node]
                    nodes.append(node)
                    for value in node.outputs:
                        seen.add(value)
                        waiting.update({use.node: None for use in value.uses() if use.node not in nodes})
                    moved = True
        return nodes, list(waiting), seen

    def _belongs(self, node: ir.Node, seen: set[ir.Value], plain: bool) -> bool:
        """Whether a node computes descriptors from descriptors."""
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in RESHAPES:
            if node.op_type == "Transpose" and not plain:
                return False  # it lays out gates for a map with its channels last
            source = node.inputs[0]
            kept = self._same_size(source, node.outputs[0])
            return (
                source in seen
                and kept
                and (node.op_type not in INDEXING or takes_all(node, self.shapes, self.constants))
            )
        if node.op_type in ELEMENTWISE or node.op_type in NORMS or node.op_type in DENSE:
            if not all(v is None or v in seen or v in self.constants for v in node.inputs):
                return False
            return self._small(node)
        if node.op_type in PAIRED:
            scales = [v for v in node.inputs[1:] if v is not None]
            whole = all(v in self.constants and prod(self.shapes.of(v) or (1,)) == 1 for v in scales)
            return node.inputs[0] in seen and bool(scales) and whole
        return False

    def _same_size(self, a: ir.Value | None, b: ir.Value) -> bool:
        one, two = self.shapes.of(a), self.shapes.of(b)
        return one is not None and two is not None and prod(one) == prod(two)

    def _small(self, node: ir.Node) -> bool:
        """Whether a node keeps one value a channel and tile: no constant map enters it, no window."""
        shape = self.shapes.of(node.outputs[0])
        if shape is None:
            return False
        if node.op_type == "Conv":
            kernel = ints(node, "kernel_shape", None) or (self.shapes.of(node.inputs[1]) or ())[2:]
            plain = all(k == 1 for k in kernel) and all(s == 1 for s in ints(node, "strides", ()))
            return plain and integer(node, "group", 1) == 1 and not any(ints(node, "pads", ()))
        if node.op_type == "Gemm":
            return not integer(node, "transA", 0)
        return True

    def _layers(self, nodes: list[ir.Node], channels: int) -> tuple[Dense, ...]:
        layers = []
        for node in nodes:
            if node.op_type not in DENSE:
                continue
            weight = next((v for v in node.inputs if v is not None and v in self.constants), None)
            shape = self.shapes.of(weight) if weight is not None else None
            if shape is None or weight is None:
                raise Miss(f"the weights of {node.op_type} '{node.name}' are not constant")
            axes = len(shape)
            if (axes < 3) if node.op_type == "Conv" else axes != 2:
                raise Miss(f"the weights of {node.op_type} '{node.name}' have {axes} axes")
            if node.op_type == "Conv":
                outputs, inputs = shape[0], shape[1]
            elif node.op_type == "Gemm":
                outputs, inputs = shape if integer(node, "transB", 0) else shape[::-1]
            else:
                outputs, inputs = shape if node.inputs[0] is weight else shape[::-1]
            own = node.op_type != "MatMul" and len(node.inputs) > 2 and node.inputs[2] is not None
            if own and prod(self.shapes.of(node.inputs[2]) or ()) not in (1, outputs):
                raise Miss(f"the bias of {node.op_type} '{node.name}' does not fit its {outputs} outputs")
            layers.append(Dense(node, inputs, outputs, own or self.bias_after(node, outputs) is not None))
        return tuple(layers)

    def bias_after(self, node: ir.Node, outputs: int) -> ir.Value | None:
        """The constant vector that is added right after a layer: paddle's and tf2onnx's way to write a bias."""
        value = node.outputs[0]
        while True:
            uses = list(value.uses())
            if len(uses) != 1:
                return None
            user = uses[0].node
            if user.op_type in ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"):
                if user.inputs[0] is not value:
                    return None
                value = user.outputs[0]
                continue
            if user.op_type != "Add":
                return None
            other = user.inputs[1] if user.inputs[0] is value else user.inputs[0]
            shape = self.shapes.of(other) if other in self.constants else None
            if shape is None or prod(shape) != outputs or len([d for d in shape if d != 1]) > 1:
                return None
            return other

    def _in_place(self, descriptors: ir.Value, nodes: list[ir.Node]) -> bool:
        """Whether every node works on (N, C, rows, cols) as it does on (N, C, 1, 1)."""
        shape = self.shapes.of(descriptors)
        if shape is None or len(shape) != 4:
            return False
        squeeze = descriptors.producer()
        if squeeze is not None and squeeze.op_type == "ReduceMean":
            kept = integer(squeeze, "keepdims", 1)
            if not kept or shape[2:] != (1, 1):
                return False
        channels, grid = shape[1], shape[2:]
        for node in nodes:
            out = self.shapes.of(node.outputs[0])
            if out is None or len(out) != 4 or out[2:] != grid:
                return False
            if node.op_type in RESHAPES and node.op_type not in ("Identity", "Dropout"):
                return False
            if node.op_type in ("Gemm", "MatMul"):
                return False
            if node.op_type in ELEMENTWISE:
                for value in node.inputs:
                    if value is None or value not in self.constants:
                        continue
                    own = self.shapes.of(value)
                    if own is None or len(own) > 4:
                        return False
                    padded = (1,) * (4 - len(own)) + tuple(own)
                    if padded[0] != 1 or padded[2:] != (1, 1) or padded[1] not in (1, out[1]):
                        return False
        return channels > 0

    def _check_vector(self, descriptors: ir.Value, nodes: list[ir.Node]) -> None:
        """Check that each value is one number a channel, so that reshapes mean nothing and layers are dense."""
        self.channel_axis(descriptors)
        for node in nodes:
            self.channel_axis(node.outputs[0])
            if node.op_type in RESHAPES:
                continue
            variable = [v for v in node.inputs if v is not None and v not in self.constants]
            axes = {self.channel_axis(v) for v in variable}
            where = f"{node.op_type} '{node.name}'"
            if node.op_type in DENSE:
                (axis,) = axes
                rank = len(self.shapes.of(variable[0]) or ())
                from_left = node.op_type == "MatMul" and node.inputs[0] in self.constants
                wanted = 1 if node.op_type == "Conv" else rank - 2 if from_left else rank - 1
                if axis is not None and axis != wanted:
                    raise Miss(f"its excitation has {where}, which does not run over the channels")
                if self.constants.array(_weight(node, self.constants)) is None:
                    raise Miss(f"the weights of {where} are computed in the network")
            elif node.op_type in NORMS:
                if axes - {1, None}:
                    raise Miss(f"its excitation has {where}, which does not run over the channels")
            else:
                self._check_operands(node, where)

    def _check_operands(self, node: ir.Node, where: str) -> None:
        out = self.shapes.of(node.outputs[0]) or ()
        axis = self.channel_axis(node.outputs[0])
        for value in node.inputs:
            if value is None or value not in self.constants:
                continue
            shape = self.shapes.of(value) or ()
            long = [i + len(out) - len(shape) for i, d in enumerate(shape) if d != 1]
            if long and long != [axis]:
                raise Miss(f"its excitation has {where}, whose constant is no vector over the channels")

    def channel_axis(self, value: ir.Value) -> int | None:
        """The axis of the channels in a value of one number a channel; None where there is one channel."""
        shape = self.shapes.of(value)
        if shape is None:
            raise Miss(f"the shape of '{value.name}' cannot be inferred")
        batch = self.shapes.image.batch
        start = 1 if batch > 1 else 0
        if batch > 1 and (not shape or shape[0] != batch):
            raise Miss(f"'{value.name}', of shape {shape}, does not keep the batch of {batch} apart")
        long = [i for i, d in enumerate(shape) if d != 1 and i >= start]
        if len(long) > 1:
            raise Miss(f"'{value.name}', of shape {shape}, is not one value a channel")
        return long[0] if long else None

    def _no_end(self, frontier: list[ir.Node], users: list[ir.Node], seen: set[ir.Value]) -> Miss:
        """The reason why these nodes end no excitation."""
        if users:
            second = next(n for n in frontier if n not in users) if len(users) == 1 else users[1]
            value = next(v for v in second.inputs if v in seen)
            return Miss(f"its '{value.name}' is used by {second.op_type} '{second.name}' as well")
        for node in frontier:
            if node.domain not in ("", "ai.onnx"):
                return Miss(
                    f"what it pools goes into {node.op_type} '{node.name}' of {node.domain}, which is no operator of "
                    "ONNX; where ONNX Runtime optimised the file, take the file from before"
                )
            if node.op_type == "DynamicQuantizeLinear":
                return Miss(
                    f"its descriptors are quantised anew at each call ({node.op_type} '{node.name}'), all with one "
                    "range, so that each gate would depend on all tiles; tile the float network and quantise that"
                )
        for node in frontier:
            quantised = node.op_type in QUANTISED or node.op_type.startswith("QLinear")
            if quantised:
                return Miss(
                    f"its descriptors are quantised ({node.op_type} '{node.name}') without one constant scale, or not "
                    "in pairs of QuantizeLinear and DequantizeLinear; tile the float network and quantise that"
                )
        for node in frontier:
            if node.op_type == "Mul":
                gate = next(v for v in node.inputs if v in seen)
                gated = next((v for v in node.inputs if v is not gate), None)
                return Miss(
                    f"what is gated ('{gated.name if gated is not None else ''}', in Mul '{node.name}') is not what "
                    "is pooled"
                )
        for node in frontier:
            if node.op_type in DENSE or node.op_type == "ConvTranspose":
                why = self._undense(node)
                return Miss(f"its excitation has {node.op_type} '{node.name}', {why}")
        if frontier:
            last = frontier[0]
            return Miss(
                f"what it pools goes into {last.op_type} '{last.name}', not into a product with the map"
            )
        if len(seen) > _LONGEST:
            return Miss("what it pools goes through a long computation, not into a product with the map")
        output = next((v.name for v in seen if v.is_graph_output()), None)
        if output is not None:
            return Miss(f"what it pools goes to the output '{output}', not into a product with the map")
        return Miss("nothing uses what it pools")

    def _undense(self, node: ir.Node) -> str:
        weight = self.shapes.of(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is not None and len(weight) == 3 and weight[:2] == (1, 1):
            return "a convolution along the channels, no dense layer (as ECA has)"
        if not any(v in self.constants for v in node.inputs):
            return "whose weights are not constant"
        return "which is no dense 1x1 layer"


def _weight(node: ir.Node, constants: Constants) -> ir.Value:
    return next(v for v in node.inputs if v is not None and v in constants)
