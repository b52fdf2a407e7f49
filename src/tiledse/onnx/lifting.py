"""Sound and volumes: SE blocks on maps of 3 and 5 axes, written on a view of 4 axes, as all of this room reads them.

A block (N, C, T) becomes Unsqueeze, the block on (N, C, T, 1), Squeeze. One of (N, C, D, H, W) becomes Reshape, the
block on (N, C, D, H * W), Reshape. The numbers are the same, and views cost a runtime nothing. ``sides`` reads them.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from .constants import Constants
from .inference import Shape, forget, infer
from .nodes import ints

# Steps between a pool and the product with its map: more than any excitation has.
_FAR = 60


def lift(model: ir.Model) -> None:
    """Write the SE blocks of a graph on 4 axes, where they stand on 3 or 5; this very graph is changed."""
    if not _has_other_axes(model):
        return
    shapes = _shapes(model)
    constants = Constants(model)
    for node in list(model.graph):
        pooled = _pooled(node, shapes, constants)
        rank = len(shapes.get(node.outputs[0].name or "", ()))
        if pooled is None or rank < 2:
            continue
        product = _product(node, pooled, constants)
        if product is not None:
            _Lifter(model, pooled, len(shapes[pooled.name or ""])).lift(node, rank, *product)


def sides(source: ir.Value, shape: tuple[int, ...] | None, constants: Constants) -> tuple[int, ...] | None:
    """The axes behind the channels of the map that a value of 4 axes is a view of, as ``lift`` writes it; else None.

    Args:
        source: The value of 4 axes.
        shape: Of what it is a view of.
        constants: Of the graph.
    """
    node = source.producer()
    if node is None or shape is None or len(node.inputs) < 1:
        return None
    if node.op_type == "Unsqueeze" and len(shape) == 3:
        axes = ints(node, "axes", None)
        if axes is None and len(node.inputs) > 1:
            axes = constants.ints(node.inputs[1])
        return shape[2:] if axes == (3,) else None
    if node.op_type == "Reshape" and len(shape) == 5:
        return shape[2:] if constants.ints(node.inputs[1]) == (0, 0, 0, -1) else None
    return None


def _has_other_axes(model: ir.Model) -> bool:
    """Whether a convolution of the graph has 1 or 3 axes, or an input has: all others are left without a look."""
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) > 1:
            weight = node.inputs[1]
            shape = None if weight is None else weight.shape
            if shape is not None and shape.rank() in (3, 5):
                return True
    return any(v.shape is not None and v.shape.rank() in (3, 5) for v in model.graph.inputs)


def _shapes(model: ir.Model) -> dict[str, Shape]:
    clone = model.clone()
    forget(clone)
    return infer(clone)[0]


def _pooled(node: ir.Node, shapes: dict[str, Shape], constants: Constants) -> ir.Value | None:
    """The map of 3 or 5 axes that a node takes the mean of; None where it is none."""
    if node.op_type not in ("ReduceMean", "GlobalAveragePool") or not node.inputs or node.inputs[0] is None:
        return None
    x = node.inputs[0]
    shape = shapes.get(x.name or "", ())
    rank = len(shape)
    axes = tuple(range(2, rank)) if node.op_type == "GlobalAveragePool" else _axes(node, constants)
    if axes is None or rank not in (3, 4, 5):
        return None
    reduced = {a % rank for a in axes}
    before = x.producer()
    source = None if before is None or not before.inputs else before.inputs[0]
    whole = () if source is None else shapes.get(source.name or "", ())
    if before is not None and before.op_type == "Unsqueeze" and rank == 4 and len(whole) == 3:
        # torch pools sound as an image of one row.
        own = _axes(before, constants)
        one = own is not None and len(own) == 1 and own[0] % 4 == 2
        return source if one and reduced in ({2, 3}, {3}) else None
    if before is not None and before.op_type in ("Reshape", "Flatten") and rank == 3 and len(whole) == 5:
        joined = None not in whole[1:] and shape[1:] == (whole[1], prod(d or 0 for d in whole[2:]))
        return source if joined and reduced == {2} else None
    return x if rank != 4 and reduced == set(range(2, rank)) else None


def _axes(node: ir.Node, constants: Constants) -> tuple[int, ...] | None:
    """The axes that a node names, where they are constant."""
    axes: tuple[int, ...] | None = ints(node, "axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = constants.ints(node.inputs[1])
    return axes


def _product(pool: ir.Node, x: ir.Value, constants: Constants) -> tuple[ir.Node, int] | None:
    """The product of a map and what comes of its mean, and which input of it that is; pads of nothing are dropped."""
    waiting, seen, idle = [pool.outputs[0]], set[ir.Value](), list[ir.Node]()
    while waiting and len(seen) < _FAR:
        value = waiting.pop(0)
        seen.add(value)
        for use in value.uses():
            user = use.node
            if user.op_type == "Mul" and len(user.inputs) == 2 and user.inputs[1 - use.idx] is x:
                for pad in idle:
                    pad.outputs[0].replace_all_uses_with(pad.inputs[0])  # type: ignore[arg-type]
                    pool.graph.remove(pad, safe=True)  # type: ignore[union-attr]
                return user, use.idx
            if user.op_type == "Pad" and not use.idx and len(user.inputs) > 1:
                pads = constants.ints(user.inputs[1])
                if pads is not None and not any(pads) and not user.outputs[0].is_graph_output():
                    idle.append(user)
            if user.op_type in ("Conv", "Shape") and use.idx:
                continue
            waiting += [out for out in user.outputs if out not in seen]
    return None


class _Lifter:
    """Writes the view of one map.

    Args:
        model: The network.
        x: The map.
        rank: Its axes, 3 or 5.
    """

    def __init__(self, model: ir.Model, x: ir.Value, rank: int) -> None:
        self.model, self.x, self.rank = model, x, rank
        self.taken = set(ir.convenience.create_value_mapping(model.graph))
        self.taken |= {node.name for node in model.graph if node.name}
        self.opset = int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)))

    def lift(self, pool: ir.Node, rank: int, product: ir.Node, slot: int) -> None:
        """Put pool, whose mean has ``rank`` axes, and product on the view."""
        graph, block = self.model.graph, pool.name or pool.outputs[0].name or ""
        flat = self.view(pool, f"{block}/map")
        old = pool.outputs[0]
        mean = self.node(pool, "GlobalAveragePool", [flat], f"{block}/mean")
        out = self.shaped(pool, mean, rank, f"{block}/squeezed")
        old.replace_all_uses_with(out)
        made = mean.producer()
        assert made is not None
        named = [value for value in pool.inputs[1:] if value is not None and value.is_initializer()]
        graph.remove(pool, safe=True)
        for value in named:  # its axes
            if not list(value.uses()):
                graph.initializers.pop(value.name or "", None)
        made.name = pool.name or made.name
        gate = product.inputs[slot]
        assert gate is not None
        expanded = gate.producer()
        if expanded is not None and expanded.op_type == "Expand" and expanded.inputs[0] is not None:
            gate = expanded.inputs[0]
        gates = self.unsqueezed(product, gate, 3, f"{block}/gates") if self.rank == 3 else self.squeezed(
            product, gate, (4,), f"{block}/gates"
        )  # fmt: skip
        whole = self.node(product, "Mul", [flat, gates] if slot else [gates, flat], f"{block}/product")
        if self.rank == 3:
            result = self.squeezed(product, whole, (3,), f"{block}/gated")
        else:
            shape = self.node(product, "Shape", [self.x], f"{block}/shape", ir.DataType.INT64)
            result = self.node(product, "Reshape", [whole, shape], f"{block}/gated")
        end = product.outputs[0]
        name, graph_output = end.name, end.is_graph_output()
        end.replace_all_uses_with(result, replace_graph_outputs=graph_output)
        result.shape = end.shape
        graph.remove(product, safe=True)
        if graph_output:
            result.name = name

    def view(self, before: ir.Node, name: str) -> ir.Value:
        """The map on 4 axes."""
        if self.rank == 3:
            return self.unsqueezed(before, self.x, 3, name)
        return self.node(before, "Reshape", [self.x, self.ints(f"{name}/sides", 0, 0, 0, -1)], name)

    def shaped(self, before: ir.Node, mean: ir.Value, rank: int, name: str) -> ir.Value:
        """A mean (N, C, 1, 1) with as many axes as the pool gave it."""
        if rank == 4:
            return mean
        if rank == 5:
            return self.unsqueezed(before, mean, 4, name)
        return self.squeezed(before, mean, (3,) if rank == 3 else (2, 3), name)

    def unsqueezed(self, before: ir.Node, value: ir.Value, axis: int, name: str) -> ir.Value:
        """A value with one axis more."""
        if self.opset < 13:
            return self.node(before, "Unsqueeze", [value], name, axes=[axis])
        return self.node(before, "Unsqueeze", [value, self.ints(f"{name}/axes", axis)], name)

    def squeezed(self, before: ir.Node, value: ir.Value, axes: tuple[int, ...], name: str) -> ir.Value:
        """A value without some axes."""
        if self.opset < 13:
            return self.node(before, "Squeeze", [value], name, axes=list(axes))
        return self.node(before, "Squeeze", [value, self.ints(f"{name}/axes", *axes)], name)

    def ints(self, name: str, *numbers: int) -> ir.Value:
        """A new initialiser of whole numbers."""
        array, fresh = np.array(numbers, np.int64), self.fresh(name)
        value = ir.Value(name=fresh, const_value=ir.tensor(array, name=fresh))
        value.dtype, value.shape = ir.DataType.INT64, ir.Shape(array.shape)
        self.model.graph.register_initializer(value)
        return value

    def node(
        self, before: ir.Node, op: str, inputs: list[ir.Value], name: str, dtype: ir.DataType | None = None,
        **attributes: list[int],
    ) -> ir.Value:  # fmt: skip
        """A new node before another."""
        fresh = self.fresh(name)
        out = ir.Value(name=self.fresh(f"{fresh}_output"))
        if (kind := dtype or self.x.dtype) is not None:
            out.dtype = kind
        self.model.graph.insert_before(before, ir.node(op, inputs, attributes, outputs=[out], name=fresh))
        return out

    def fresh(self, what: str) -> str:
        """A name that nothing has."""
        name, i = what, 1
        while name in self.taken:
            i += 1
            name = f"{what}_{i}"
        self.taken.add(name)
        return name
