"""What readers ask of a graph's nodes: attributes and users; and why a place is no block."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


class Miss(Exception):
    """Why a place that pools a map is no SE block."""


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that uses a value, or None."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def ints(node: ir.Node, name: str, default: Any) -> Any:
    """A list of whole numbers from a node's attributes."""
    attribute = node.attributes.get(name)
    return default if attribute is None else tuple(int(i) for i in attribute.as_ints())


def integer(node: ir.Node, name: str, default: int) -> int:
    """A whole number from a node's attributes."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def string(node: ir.Node, name: str, default: str) -> str:
    """A text from a node's attributes."""
    attribute = node.attributes.get(name)
    return default if attribute is None else str(attribute.as_string())
