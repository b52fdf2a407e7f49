"""Whether what pools a map gates that very map, read or not: such a place stays SE where others are given tiles."""

from __future__ import annotations

import onnx_ir as ir

# Values to look at between a pool and a product.
_FARTHEST = 200
_PRODUCTS = ("Mul", "QLinearMul", "Einsum")
# What hands a map on as it is, but for its type and the order of its axes.
_SAME = ("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear")


def gates_its_map(pooled: ir.Value, source: ir.Value) -> bool:
    """Whether a product takes a map, and what is computed from the means of it.

    Args:
        pooled: What pools it.
        source: The map.
    """
    root = _root(source)
    waiting, seen = [pooled], {pooled}
    while waiting and len(seen) < _FARTHEST:
        value = waiting.pop(0)
        for use in value.uses():
            node = use.node
            others = [v for v in node.inputs if v is not None and v not in seen]
            if node.op_type in _PRODUCTS and any(_root(v) is root for v in others):
                return True
            for out in node.outputs:
                if out not in seen:
                    seen.add(out)
                    waiting.append(out)
    return False


def _root(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in _SAME and node.inputs[0] is not None:
        value = node.inputs[0]
    return value
