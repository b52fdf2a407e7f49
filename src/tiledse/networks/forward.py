"""Read a traced forward as SE: the product, its gate, and every step from the mean to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import first_line
from .calls import ARITHMETIC, FUNCTIONS, MAXIMA, MEANS, NORMS, PRODUCTS, RESHAPES, SHAPES, VIEWS
from .program import Program, Ref, Step

NOT_MULTIPLIED = "what it pools is not multiplied back onto the map that was pooled"
INLINE = "its squeeze, excitation and product are part of a larger forward"


class NoBlock(Exception):
    """Why a block is no SE block."""

    def __init__(self, reason: str, inline: bool = False) -> None:
        super().__init__(reason)
        self.inline = inline


class ForwardReader:
    """Reads one traced forward as SE, or raises NoBlock with the reason."""

    def __init__(self, block: nn.Module, graph: fx.Graph, shape: tuple[int, ...]) -> None:
        self.block = block
        self.graph = graph
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        if not inputs:
            raise NoBlock("it takes no input")
        self.x = inputs[0]
        self.shapes = _Shapes(block, graph, shape)
        self.channels = shape[1]
        self.nhwc = False
        self.fold = False
        self.dense = 0

    def kind(self, node: fx.Node) -> Any:
        """What a node calls: a module's class, a function, or the name of a method."""
        return type(self.block.get_submodule(str(node.target))) if node.op == "call_module" else node.target

    def program(self) -> Program:
        """The steps from the map to the gate."""
        gate = self.gate()
        wanted = _ancestors(gate)
        steps: list[Step] = []
        place: dict[fx.Node, int] = {}
        squeezed: dict[fx.Node, bool] = {self.x: False}
        for node in self.graph.nodes:
            if node not in wanted:
                continue
            is_pool = False
            if node.op not in ("placeholder", "get_attr"):
                is_pool = self.check(node, squeezed)
            place[node] = len(steps)
            steps.append(self.step(node, place, is_pool and self.shapes.axes(node) == 4))
        if not self.dense:
            raise NoBlock("no dense layer (Linear or 1x1 convolution) lies between the mean and the gate")
        if not squeezed.get(gate):
            raise NoBlock("its gate does not come from a mean over the whole map")
        return Program(tuple(steps), self.fold or self.nhwc, self.nhwc)

    def gate(self) -> fx.Node:
        """The factor of the product that is not the map itself."""
        output = next(node for node in self.graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node):
            raise NoBlock("it gives back several values")
        if output.op == "placeholder" or self.kind(output) not in PRODUCTS:
            raise self.no_product()
        factors = [arg for arg in output.args[:2] if isinstance(arg, fx.Node)]
        gates = [factor for factor in factors if self.origin(factor) is not self.x]
        if len(factors) != 2 or len(gates) != 1:
            raise self.no_product()
        return gates[0]

    def no_product(self) -> NoBlock:
        """Why a forward that does not end in the product is none: SE among other things, or no product at all."""
        for node in self.graph.nodes:
            if node.op == "placeholder" or self.kind(node) not in PRODUCTS:
                continue
            factors = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
            for gate, other in zip(factors, reversed(factors)):
                pools = [n for n in _ancestors(gate) if n.op != "placeholder" and self.kind(n) in MEANS]
                if any(self.origin(arg) is self.origin(other) for n in pools for arg in n.all_input_nodes):
                    return NoBlock(
                        f"{INLINE}; give them a module of their own to have them found", inline=True
                    )
        return NoBlock(NOT_MULTIPLIED)

    def origin(self, node: fx.Node) -> fx.Node:
        """The node that this one passes on unchanged."""
        while node.op == "call_module" and self.kind(node) is nn.Identity:
            node = node.all_input_nodes[0]
        return node

    def check(self, node: fx.Node, squeezed: dict[fx.Node, bool]) -> bool:
        """Say whether a node completes the squeeze; raise NoBlock where it is nothing that an SE block does."""
        kind = self.kind(node)
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
        sources = [squeezed[n] for n in node.all_input_nodes if n in squeezed]
        if not sources or kind in SHAPES or self.shapes.of(node) is None:
            return False  # sizes and numbers, no values of the map
        if kind in ("expand_as", "view_as") and squeezed.get(node.args[0]):  # type: ignore[arg-type]
            squeezed[node] = self.fold = True
            return False
        if not all(sources):
            if any(sources):
                raise NoBlock(f"its gate mixes pooled and unpooled values in {name}")
            return self.check_squeeze(node, kind, name, squeezed)
        squeezed[node] = True
        self.check_excite(node, kind, name)
        return False

    def check_squeeze(self, node: fx.Node, kind: Any, name: str, squeezed: dict[fx.Node, bool]) -> bool:
        """``check`` for what meets the map itself: nothing but views and means may."""
        if kind in MAXIMA:
            raise NoBlock(f"its squeeze takes a maximum ({name}), not only a mean")
        if kind in VIEWS:
            squeezed[node] = False
            self.fold = self.fold or kind not in (nn.Identity, "contiguous")
            return False
        if kind not in MEANS:
            raise NoBlock(f"the map passes {name} before it is pooled")
        before, after = self.shapes.of(node.all_input_nodes[0]), self.shapes.of(node)
        batch, channels = self.shapes.batch, self.channels
        if after is None or before is None:
            raise NoBlock("the shape of its squeeze is not known")
        count = 1
        for size in after:
            count *= size
        if len(before) == 4 and len(after) in (2, 4) and self.shapes.mean_axes(node, len(before)) == {1, 2}:
            self.nhwc, self.channels = True, before[3]
            channels = before[3]
        squeezed[node] = count == batch * channels
        one_axis = len(self.shapes.mean_axes(node, len(before))) == 1
        if not squeezed[node] and len(after) == len(before) and not one_axis:
            raise NoBlock(f"its squeeze leaves {tuple(after[2:])} values a channel, not one")
        # A mean over one axis at a time has a meaning for one tile only, and so has one that drops axes.
        self.fold = self.fold or one_axis or len(after) != 4
        return squeezed[node]

    def check_excite(self, node: fx.Node, kind: Any, name: str) -> None:
        """``check`` for what comes after the mean: dense layers and functions of one channel vector."""
        if kind in RESHAPES:
            self.fold = self.fold or kind not in (nn.Identity, "contiguous")
            return
        if node.op == "call_module":
            layer = self.block.get_submodule(str(node.target))
            if isinstance(layer, nn.Linear):
                self.dense += 1
                self.fold = True
            elif isinstance(layer, nn.Conv2d):
                if layer.kernel_size != (1, 1) or layer.groups != 1 or layer.stride != (1, 1):
                    raise NoBlock(
                        f"its excitation has {name} '{node.target}', which is no dense 1x1 convolution"
                    )
                self.dense += 1
            elif isinstance(layer, (nn.Conv1d, nn.Conv3d)):
                raise NoBlock(
                    f"its excitation has {name} '{node.target}': a convolution along the channels, "
                    "not a dense layer (as ECA has)"
                )
            elif not isinstance(layer, NORMS) and any(True for _ in layer.parameters()):
                raise NoBlock(f"its excitation has {name} '{node.target}', which is no layer of SE")
            return
        if kind in (F.linear, F.conv2d):
            self.dense += 1
            self.fold = True
        elif kind not in ARITHMETIC | FUNCTIONS:
            raise NoBlock(f"its excitation calls {name}, which is no step of SE")

    def step(self, node: fx.Node, place: dict[fx.Node, int], skip: bool) -> Step:
        """The node as a step. ``skip``: a pool that keeps its axes passes its descriptors on as they are."""

        def plain(arg: Any) -> Any:
            if isinstance(arg, fx.Node):
                return Ref(place[arg])
            if isinstance(arg, (tuple, list)):
                return tuple(plain(item) for item in arg)
            return arg

        if node.op == "placeholder":
            return Step("placeholder", "")
        if skip:
            return Step("same", "", (Ref(place[node.all_input_nodes[0]]),))
        return Step(
            node.op,
            node.target,
            tuple(plain(arg) for arg in node.args),
            tuple((key, plain(value)) for key, value in node.kwargs.items()),
        )


class _Shapes:
    """The shape of every value in a traced forward, from fake tensors: no memory, no arithmetic."""

    batch = 2

    def __init__(self, block: nn.Module, graph: fx.Graph, shape: tuple[int, ...]) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.values: dict[fx.Node, Any] = {}
        record: Callable[[fx.Node, Any], None] = self.values.__setitem__

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                record(n, value)
                return value

        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                dtype = next((p.dtype for p in block.parameters()), torch.float32)
                x = torch.empty(self.batch, *shape[1:], dtype=dtype)
                Recorder(fx.GraphModule(block, graph)).run(x)
        except Exception as error:
            raise NoBlock(
                f"its forward fails on a batch of {self.batch} maps: {first_line(error, 80)}"
            ) from None

    def of(self, node: fx.Node) -> tuple[int, ...] | None:
        value = self.values.get(node)
        return tuple(value.shape) if isinstance(value, Tensor) else None

    def axes(self, node: fx.Node) -> int:
        return len(self.of(node) or ())

    def mean_axes(self, node: fx.Node, axes: int) -> set[int]:
        """Axes of a call of mean, counted from the front; empty for the pools."""
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
        if node.op == "call_module" or node.target not in (torch.mean, "mean"):
            return set()
        dims = dim if isinstance(dim, (tuple, list)) else (dim,)
        return {d % axes for d in dims if isinstance(d, int)}


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += node.all_input_nodes
    return seen
