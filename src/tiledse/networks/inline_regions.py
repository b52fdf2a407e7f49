"""Where the traced forward of a module holds SE: the product, its map, and every step between them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .inline_steps import Ref, Step, Steps
from .reasons import NoBlock

_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_"}
_SIZES = {"size", "dim", "numel", getattr}
_IN_PLACE = {operator.imul, "mul_", "multiply_"}

Kind = Callable[[fx.Node], Any]


@dataclass(frozen=True)
class Region:
    """A product of a map and a factor that is computed from it.

    Attributes:
        product: The product.
        x: The map that is multiplied.
        nodes: What is computed from the map on the way to the product, in order, the product last.
    """

    product: fx.Node
    x: fx.Node
    nodes: tuple[fx.Node, ...]
    in_place: bool


def kinds(module: nn.Module) -> Kind:
    """What a node of the module's forward calls: a module's class, a function, or the name of a method."""

    def kind(node: fx.Node) -> Any:
        return type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target

    return kind


def regions(graph: fx.Graph, kind: Kind) -> Iterator[Region]:
    """Every product of a value with something that is computed from that value, in order."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for product in graph.nodes:
        if product.op in ("placeholder", "get_attr", "output") or kind(product) not in _PRODUCTS:
            continue
        factors = [arg for arg in product.args[:2] if isinstance(arg, fx.Node)]
        if len(factors) != 2 or factors[0] is factors[1]:
            continue
        for factor, gate in (factors, reversed(factors)):
            x = _origin(factor, kind)
            above = _reach(gate, lambda n: n.all_input_nodes)
            if x in above and x is not gate and x.op != "get_attr":
                below = _reach(x, lambda n: n.users)
                nodes = sorted((above | {product, factor}) & below - {x}, key=order.__getitem__)
                in_place = kind(product) in _IN_PLACE and product.args[0] is factor
                yield Region(product, x, tuple(nodes), in_place)
                break


def body(region: Region) -> fx.Graph:
    """The region as a forward of its own, from the map to the product.

    Raises:
        NoBlock: it takes other values of the forward than the map, or others take what it computes.
    """
    inside = set(region.nodes)
    for node in region.nodes[:-1]:
        for user in node.users:
            if user not in inside and node.op != "get_attr" and not _is_size(node):
                raise NoBlock(f"what it computes for the gate ({node.name}) is used by '{user.name}' as well")
    graph = fx.Graph()
    new = {region.x: graph.placeholder("x")}

    def outer(node: fx.Node) -> fx.Node:
        """A value from outside: a constant, or the size of a map that has the gated map's batch or channels."""
        if node in new:
            return new[node]
        axis = _axis(node)
        if axis in (0, 1):
            return graph.call_method("size", (new[region.x], axis))
        above = _reach(node, lambda n: n.all_input_nodes)
        if any(n.op in ("placeholder", "call_module") for n in above):
            raise NoBlock(
                f"its gate takes '{node.name}' as well, which does not come from the map that it gates"
            )
        new[node] = graph.node_copy(node, outer)
        return new[node]

    for node in region.nodes:
        new[node] = graph.node_copy(node, outer)
    if region.in_place:  # of the map itself; ``replace`` writes into it
        last = new[region.product]
        last.op, last.target = "call_function", operator.mul
    graph.output(new[region.product])
    return graph


def steps_of(graph: fx.Graph) -> Steps:
    """A graph of one input and one output as a value that can be kept, compared and run."""
    place: dict[fx.Node, int] = {}
    steps: list[Step] = []

    def plain(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return Ref(place[arg])
        if isinstance(arg, (tuple, list)):
            return tuple(plain(item) for item in arg)
        if isinstance(arg, (dict, slice)):
            raise NoBlock(f"a step of its excitation takes a {type(arg).__name__}")
        return arg

    for node in graph.nodes:
        if node.op == "output":
            break
        place[node] = len(steps)
        if node.op == "placeholder":
            steps.append(Step("placeholder", ""))
            continue
        kwargs = tuple((key, plain(value)) for key, value in node.kwargs.items())
        steps.append(Step(node.op, node.target, plain(node.args), kwargs))
    return Steps(tuple(steps))


def replace(graph: fx.Graph, region: Region, name: str) -> None:
    """Put a call of the child ``name`` in the place of a region."""
    product = region.product
    with graph.inserting_before(product):
        call = graph.call_module(name, (region.x,))
        if region.in_place:  # what reads the map later reads the product
            call = graph.call_method("copy_", (region.x, call))
    product.replace_all_uses_with(call)
    for node in reversed(region.nodes):
        if not node.users:
            graph.erase_node(node)


def _origin(node: fx.Node, kind: Kind) -> fx.Node:
    """The node that this one passes on unchanged."""
    while node.op == "call_module" and kind(node) is nn.Identity:
        node = node.all_input_nodes[0]
    return node


def _reach(start: fx.Node, following: Callable[[fx.Node], Any]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    todo = [start]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += list(following(node))
    return seen


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target in (operator.getitem, operator.mul, operator.floordiv):
        return all(_is_size(n) for n in node.all_input_nodes)
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.op in ("call_method", "call_function") and node.target in _SIZES


def _axis(node: fx.Node) -> int | None:
    """Of a node that is the size of one axis of a tensor: which axis."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return node.args[1] if isinstance(node.args[1], int) else None
    if (
        node.target is operator.getitem
        and isinstance(node.args[0], fx.Node)
        and isinstance(node.args[1], int)
    ):
        return (
            node.args[1] if _is_size(node.args[0]) and node.args[0].target is not operator.getitem else None
        )
    return None


def compiled(graph: fx.Graph) -> Any:
    """The graph as a function of the module and the tensors."""
    code = graph.python_code("self")
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<forward with inline SE>", "exec"), scope)
    return scope["forward"]
