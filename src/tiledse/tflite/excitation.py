"""Read the excitation: all that lies between the descriptors and the product with the map.

As for ONNX, nothing in it is a fixed pattern: whatever computes gates from descriptors by dense layers and elementwise
functions is an excitation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .graph import Graph
from .nodes import DENSE, ELEMENTWISE, REPEATS, RESHAPES, Miss

_LONGEST = 64


@dataclass(frozen=True)
class Dense:
    """A dense layer."""

    op: Any
    inputs: int
    outputs: int
    bias: bool


@dataclass(frozen=True)
class Excitation:
    """An excitation, as it stands in a graph.

    Attributes:
        operators: Its operators, in order.
        gate: The tensor that holds the gates.
        user: The operator that takes them.
        layers: Its dense layers, in order.
    """

    operators: tuple[Any, ...]
    gate: int
    user: Any
    layers: tuple[Dense, ...]

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

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def read(self, descriptors: int, channels: int, tiles: int, source: int | None = None) -> Excitation:
        """Follow descriptors to the operator that takes the gates.

        Args:
            descriptors: Their tensor.
            channels: How many channels they have.
            tiles: How many descriptors a channel has.
            source: The map, where it is known: what the gates are to meet.

        Raises:
            Miss: this is no excitation; why.
        """
        graph = self.graph
        found, seen, ends = self._follow(descriptors, tiles)
        if len(ends) != 1:
            raise self._no_end(ends, seen)
        user = ends[0]
        taken = [int(t) for t in user.inputs if int(t) in seen]
        if len(set(taken)) != 1:
            raise Miss(f"its gate is taken twice, by {self._said(user)}")
        gate = taken[0]
        meets = graph.kind(user) == "MUL" and (source is None or source in map(int, user.inputs))
        if not meets and (source is not None or graph.kind(user) not in REPEATS):
            raise self.no_product(user, gate)
        for tensor in seen:
            if tensor in graph.outputs:
                raise Miss(f"'{graph.name(tensor)}', within it, is an output of the network")
        found = [op for op in found if graph.kind(op) != "SHAPE" and self._leads(op, gate, found)]
        layers = self._layers(found, descriptors, channels, tiles)
        if not layers:
            raise Miss("no dense layer (1x1 CONV_2D or FULLY_CONNECTED) lies between its mean and its gate")
        if layers[-1].outputs == 1 and channels > 1:
            raise Miss("it has one gate for all channels")
        if layers[-1].outputs != channels:
            raise Miss(f"its last layer gives {layers[-1].outputs} values for {channels} channels")
        return Excitation(tuple(found), gate, user, layers)

    def _follow(self, start: int, tiles: int) -> tuple[list[Any], set[int], list[Any]]:
        """Operators that depend on the descriptors alone, their tensors, and the operators that these end in."""
        graph, seen, found = self.graph, {start}, list[Any]()
        waiting = list(graph.users.get(start, []))
        moved = True
        while moved and len(found) <= _LONGEST:
            moved = False
            for op in list(waiting):
                if graph.kind(op) == "SHAPE":
                    waiting.remove(op)
                    moved = True
                elif self._belongs(op, seen, tiles):
                    waiting.remove(op)
                    found.append(op)
                    for tensor in map(int, op.outputs):
                        seen.add(tensor)
                        for user in graph.users.get(tensor, []):
                            if not any(user is other for other in (*found, *waiting)):
                                waiting.append(user)
                    moved = True
        order = {id(op): i for i, op in enumerate(graph.operators)}
        return sorted(found, key=lambda op: order[id(op)]), seen, waiting

    def _belongs(self, op: Any, seen: set[int], tiles: int) -> bool:
        """Whether an operator computes descriptors from descriptors."""
        graph, kind = self.graph, self.graph.kind(op)
        inputs = [int(t) for t in op.inputs]
        if kind in RESHAPES:
            # A grid of gates is reshaped where it is repeated over its tiles, after the excitation.
            same = prod(graph.shape(inputs[0])) == prod(graph.shape(int(op.outputs[0])))
            return tiles == 1 and inputs[0] in seen and same
        if kind in ELEMENTWISE or kind in DENSE:
            if not all(t in seen or graph.is_constant(t) for t in inputs) or len(op.outputs) != 1:
                return False
            return kind not in DENSE or self._plain(op)
        return False

    def _plain(self, op: Any) -> bool:
        """Whether a dense layer is one: no window, no stride."""
        graph = self.graph
        weight = graph.shape(int(op.inputs[1]))
        if graph.kind(op) == "FULLY_CONNECTED":
            return len(weight) == 2 and op.builtinOptions is not None and not op.builtinOptions.weightsFormat
        options = op.builtinOptions
        plain = options is not None and options.strideW == 1 and options.strideH == 1
        same = weight[3:] == graph.shape(int(op.inputs[0]))[3:]  # else it is grouped
        return plain and len(weight) == 4 and weight[1:3] == (1, 1) and same

    def _leads(self, op: Any, gate: int, found: list[Any]) -> bool:
        """Whether something uses what an operator gives."""
        given = [int(t) for t in op.outputs]
        return gate in given or any(int(t) in given for other in found for t in other.inputs)

    def _layers(self, operators: list[Any], descriptors: int, channels: int, tiles: int) -> tuple[Dense, ...]:
        """The dense layers, after checking that every value is one number a channel and tile."""
        self._check_vector(descriptors, tiles)
        layers = []
        for op in operators:
            kind = self.graph.kind(op)
            out = int(op.outputs[0])
            self._check_vector(out, tiles)
            if kind in RESHAPES:
                continue
            if kind in DENSE:
                weight = self.graph.shape(int(op.inputs[1]))
                outputs, inputs = weight[0], weight[-1]
                if inputs != self._channels(int(op.inputs[0]), tiles):
                    raise Miss(f"its excitation has {self._said(op)}, which does not run over the channels")
                bias = len(op.inputs) > 2 and int(op.inputs[2]) >= 0
                layers.append(Dense(op, inputs, outputs, bias))
                continue
            for tensor in map(int, op.inputs):
                shape = self.graph.shape(tensor)
                if self.graph.is_constant(tensor) and prod(shape) not in (1, self._channels(out, tiles)):
                    raise Miss(
                        f"its excitation has {self._said(op)}, whose constant is no vector over the channels"
                    )
        return tuple(layers)

    def _channels(self, tensor: int, tiles: int) -> int:
        shape = self.graph.shape(tensor)
        batch = self.batch
        return prod(shape) // (tiles * batch)

    @property
    def batch(self) -> int:
        """Images in the batch that the file is written for."""
        shape = self.graph.shape(self.graph.inputs[0])
        return max(1, shape[0]) if len(shape) > 1 else 1

    def _check_vector(self, tensor: int, tiles: int) -> None:
        shape = self.graph.shape(tensor)
        rest = list(shape)
        if self.batch > 1:
            if not rest or rest[0] != self.batch:
                raise Miss(f"'{self.graph.name(tensor)}', of shape {shape}, does not keep the batch apart")
            rest = rest[1:]
        if tiles == 1 and len([d for d in rest if d != 1]) > 1:
            raise Miss(f"'{self.graph.name(tensor)}', of shape {shape}, is not one value a channel")

    def _said(self, op: Any) -> str:
        kind, outputs = self.graph.kind(op), [int(t) for t in op.outputs]
        return f"{kind} '{self.graph.name(outputs[0])}'" if outputs else kind

    def _no_end(self, ends: list[Any], seen: set[int]) -> Miss:
        """The reason why these operators end no excitation."""
        graph = self.graph
        if len(ends) > 1:
            products = [op for op in ends if graph.kind(op) == "MUL"]
            other = next((op for op in ends if op not in products[:1]), ends[-1])
            value = next(int(t) for t in other.inputs if int(t) in seen)
            return Miss(f"its '{graph.name(value)}' is used by {self._said(other)} as well")
        output = next((graph.name(t) for t in sorted(seen) if t in graph.outputs), None)
        if output is not None:
            return Miss(f"what it pools goes to the output '{output}', not into a product with the map")
        if len(seen) > _LONGEST:
            return Miss("what it pools goes through a long computation, not into a product with the map")
        return Miss("nothing uses what it pools")

    def no_product(self, op: Any, seen: int) -> Miss:
        """The reason why an operator that takes gates is no product with the map."""
        kind, said = self.graph.kind(op), self._said(op)
        if kind.startswith("custom"):
            return Miss(
                f"what it pools goes into the {kind.replace('custom', 'custom operator')}, which is not read"
            )
        if kind == "MUL":
            other = next((int(t) for t in op.inputs if int(t) != seen), seen)
            return Miss(f"what is gated ('{self.graph.name(other)}', in {said}) is not what is pooled")
        if kind in DENSE:
            return Miss(f"its excitation has {said}, which is no dense 1x1 layer")
        return Miss(f"what it pools goes into {said}, not into a product with the map")
