"""Walk the operators of a traced network and ask the table how each one treats rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import TiledSEError, told_as
from ..networks.counting import MacCounter
from .graph import Node, RowGraph, Run, Value
from .maps import RowMap, Whole
from .tracing import in_place

# Adds the node of one operator; which of several results is meant comes last.
Treatment = Callable[["Builder", torch.fx.Node, Any], "Ref"]


class Ref:
    """A value of the row graph where the traced graph has a node; a constant is a tensor or a number."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class Several:
    """An operator with several results, of which each is made when it is asked for."""

    def __init__(self, node: torch.fx.Node) -> None:
        self.node = node


class Builder:
    """Walks a traced network once.

    Attributes:
        graph: The row graph, as it was traced.
        blocks: The SE blocks by name.
    """

    def __init__(self, program: ExportedProgram, blocks: Mapping[str, Any], treat: Treatment) -> None:
        self.blocks = blocks
        self._treat = treat
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.env: dict[torch.fx.Node, Any] = {}
        outputs: list[int] = []
        constants = _constants(program)
        with torch.no_grad():
            for fx in program.graph.nodes:
                if fx.op == "placeholder":
                    self._placeholder(fx, constants)
                elif fx.op == "call_function":
                    self._call(fx)
                elif fx.op == "output":
                    user = [
                        s.arg.name
                        for s in program.graph_signature.output_specs
                        if s.kind.name == "USER_OUTPUT"
                    ]
                    by_name = {n.name: n for n in program.graph.nodes}
                    outputs = [self._output(by_name[name]) for name in user]
        for index in outputs:
            self.values[index].outputs += 1
        spec = program.call_spec.out_spec
        shape: Any = self.values[0].shape
        image = next(fx.meta["val"] for fx in program.graph.nodes if fx.name not in constants)
        self.graph = RowGraph(shape, self.values, self.nodes, outputs, spec, image.dtype, image.device)

    def _placeholder(self, fx: torch.fx.Node, constants: dict[str, Any]) -> None:
        if fx.name in constants:
            self.env[fx] = constants[fx.name]
        else:
            self.env[fx] = self.value("image", tuple(fx.meta["val"].shape), 2)

    def _output(self, fx: torch.fx.Node) -> int:
        value = self.env[fx]
        if isinstance(value, Several):
            raise TiledSEError(
                "the network gives an output that is several tensors in one; take it apart first"
            )
        if not isinstance(value, Ref):
            raise TiledSEError(f"the output '{fx.name}' does not depend on the image; nothing to stream")
        return value.index

    def _call(self, fx: torch.fx.Node) -> None:
        if str(fx.target).startswith(("aten._assert", "aten.sym_", "<built-in function eq>")):
            return
        if fx.target is operator.getitem:
            source = self.env[fx.args[0]]  # type: ignore[index]
            if isinstance(source, Several):
                self.env[fx] = self._treat(self, source.node, fx.args[1])
            else:
                self.env[fx] = source[fx.args[1]]
            return
        tensors = [self.env[arg] for arg in fx.all_input_nodes if arg in self.env]
        if not any(isinstance(t, (Ref, Several)) for t in tensors):
            args, kwargs = self.filled(fx)
            self.env[fx] = fx.target(*args, **kwargs)  # type: ignore[operator]
            return
        if isinstance(fx.meta["val"], (tuple, list)):
            self.env[fx] = Several(fx)
            return
        # It may be an operator in a form that the table does not know.
        with told_as(f"'{self.layer(fx)}' ({fx.target}) cannot be streamed"):
            result = self._treat(self, fx, None)
        self.env[fx] = result
        if in_place(fx):
            self.env[fx.args[0]] = result  # type: ignore[index]

    def filled(self, fx: torch.fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with constants in place of nodes; references stay."""
        fill = lambda a: self.env[a] if isinstance(a, torch.fx.Node) else a  # noqa: E731
        args = torch.fx.node.map_aggregate(fx.args, fill)
        kwargs = torch.fx.node.map_aggregate(fx.kwargs, fill)
        return tuple(args), dict(kwargs)

    def slotted(self, fx: torch.fx.Node) -> tuple[list[Ref], tuple[Any, ...], dict[str, Any]]:
        """The references among an operator's arguments, and its arguments with slots in their place."""
        refs: list[Ref] = []

        def slot(a: Any) -> Any:
            if not isinstance(a, Ref):
                return a
            refs.append(a)
            return Slot(len(refs) - 1)

        args, kwargs = tree_map(slot, self.filled(fx))
        return refs, args, kwargs

    def layer(self, fx: torch.fx.Node) -> str:
        """The name of the layer that an operator belongs to."""
        stack = fx.meta.get("nn_module_stack") or {}
        path = ""
        for entry in stack.values():
            path = entry[0]
        return path.removeprefix("L['self'].").removeprefix("L__self___") or fx.name

    def value(self, name: str, shape: tuple[int, ...], row_dim: int | None) -> Ref:
        """A new value."""
        images = self.values[0].images if self.values else shape[0]
        self.values.append(Value(name, shape, row_dim, images=images))
        return Ref(len(self.values) - 1)

    def add(
        self,
        fx: torch.fx.Node,
        kind: str,
        inputs: list[Ref],
        maps: list[RowMap],
        run: Run,
        row_dim: int | None,
        pick: Any = None,
        macs: int | None = None,
        shape: tuple[int, ...] | None = None,
        **more: Any,
    ) -> Ref:
        """A new node and its value; ``macs`` are counted, and ``shape`` is the operator's, where they are left out."""
        meta = fx.meta["val"] if pick is None else fx.meta["val"][pick]
        name = self.layer(fx)
        ref = self.value(name, tuple(meta.shape) if shape is None else shape, row_dim)
        node = Node(name, kind, tuple(r.index for r in inputs), tuple(maps), ref.index, run, **more)
        node.macs = self._macs(fx) if macs is None else macs
        self.values[ref.index].maker = len(self.nodes)
        self.nodes.append(node)
        return ref

    def _macs(self, fx: torch.fx.Node) -> int:
        if not any(name in str(fx.target) for name in ("conv", "linear", "mm", "dot", "matmul", "einsum")):
            return 0

        if fx.target is torch.ops.aten.linear.default:
            # Torch's counter leaves the biases out where channels do not lie last in memory.
            weight: Any = fx.args[1]
            inputs = weight.meta["val"].shape[1] + (len(fx.args) > 2 and fx.args[2] is not None)
            return int(fx.meta["val"].numel() * inputs // self.values[0].shape[0])

        def empty(a: Any) -> Any:
            return (
                torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta")
                if isinstance(a, Tensor)
                else a
            )

        fill = lambda a: a.meta["val"] if isinstance(a, torch.fx.Node) else a  # noqa: E731
        args = tree_map(empty, torch.fx.node.map_aggregate(fx.args, fill))
        kwargs = tree_map(empty, torch.fx.node.map_aggregate(fx.kwargs, fill))
        with MacCounter() as counter:
            fx.target(*args, **kwargs)  # type: ignore[operator]
        return counter.macs // self.values[0].shape[0]

    def whole(self, fx: torch.fx.Node, pick: Any = None) -> Ref:
        """A layer that is not local in rows: it gets whole maps and gives its result as if row by row."""
        refs, call = self.call(fx, pick)
        meta = fx.meta["val"] if pick is None else fx.meta["val"][pick]
        shape = tuple(meta.shape)
        row_dim = 2 if len(shape) == 4 and shape[2] > 1 else None
        waits = any(self.values[r.index].height > 1 for r in refs)
        rows = 1 if row_dim is None else shape[2]
        return self.add(
            fx,
            "whole" if waits else "row",
            refs,
            [Whole(rows)] * len(refs),
            lambda parts, a, b: call(parts),
            row_dim,
            pick,
            needs_height=f"{self.layer(fx)} takes the whole map" if waits and rows > 1 else None,
            sizes=whole_numbers(fx),
        )

    def call(self, fx: torch.fx.Node, pick: Any = None) -> tuple[list[Ref], Callable[[list[Tensor]], Any]]:
        """The references among an operator's arguments, and the operator as a function of their rows."""
        refs, args, kwargs = self.slotted(fx)
        target: Any = functional(fx.target)

        def call(parts: list[Tensor]) -> Any:
            fill = lambda a: parts[a.index] if isinstance(a, Slot) else a  # noqa: E731
            result = target(*tree_map(fill, args), **tree_map(fill, kwargs))
            return result if pick is None else result[pick]

        flat = all(isinstance(a, Slot) or not isinstance(a, (list, tuple, dict)) for a in args) and not kwargs
        if flat and len(refs) == 1:  # most operators: no walk through the arguments at each call
            at = next(i for i, a in enumerate(args) if isinstance(a, Slot))
            before, after = args[:at], args[at + 1 :]
            if pick is None:
                return refs, lambda parts: target(*before, parts[0], *after)
        return refs, call


class Slot:
    """Where an operand's rows go among an operator's arguments."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def whole_numbers(fx: torch.fx.Node) -> tuple[int, ...]:
    """The whole numbers among an operator's arguments; sizes of a map are some of them."""
    return tuple(leaf for leaf in tree_leaves((fx.args, fx.kwargs)) if type(leaf) is int)


def numbers_in(arguments: Any) -> tuple[str, ...]:
    """The numbers among an operator's arguments, constants by their sum: some may have come from the size of a map."""
    found = []
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, Tensor) and not leaf.is_meta:
            found.append(repr(float(leaf.detach().double().sum())))
        elif isinstance(leaf, (int, float)):
            found.append(repr(leaf))
    return tuple(found)


def functional(target: Any) -> Any:
    """The operator that gives what an in-place one writes."""
    schema = getattr(target, "_schema", None)
    if schema is None or not schema.name.endswith("_") or schema.name.endswith("__"):
        return target
    namespace, name = schema.name.removesuffix("_").split("::")
    return getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")


def _constants(program: ExportedProgram) -> dict[str, Any]:
    """Parameters, buffers and lifted constants by the name of their placeholder."""
    constants: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        target = spec.target
        if target is not None:
            held = program.state_dict.get(target, program.constants.get(target))
            constants[spec.arg.name] = held.detach() if isinstance(held, Tensor) else held
    return constants
