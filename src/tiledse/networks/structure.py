"""Recognise an SE block that nobody registered, by what its forward computes.

The forward is traced (torch.fx) and must be ``x * gate``, where the gate meets x only through a mean over the whole
map and then passes dense layers and functions of one channel vector. What is recognised is also run: the block
and our reading of it must give the same numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import first_line
from ..op.functional import scale, squeeze
from ..tile import Tile
from .dialects import Dialect, class_name

DIALECT = "traced"
NOT_MULTIPLIED = "what it pools is not multiplied back onto the map that was pooled"

_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_"}
_MEANS = {torch.mean, "mean", F.adaptive_avg_pool2d, F.avg_pool2d, nn.AdaptiveAvgPool2d, nn.AvgPool2d}
_MAXIMA = {torch.amax, torch.max, "amax", "max", F.adaptive_max_pool2d, F.max_pool2d}
_MAXIMA |= {nn.AdaptiveMaxPool2d, nn.MaxPool2d}
_VIEWS = {"view", "reshape", "flatten", torch.flatten, torch.reshape, "contiguous", nn.Flatten, nn.Identity}
_RESHAPES = _VIEWS | {
    "unsqueeze",
    "squeeze",
    torch.unsqueeze,
    torch.squeeze,
    "view_as",
    "expand_as",
    "expand",
}
_RESHAPES |= {"permute", "transpose", torch.permute, torch.transpose, nn.Unflatten}
_SHAPES = {"size", "dim", getattr, operator.getitem}
_ARITHMETIC = {operator.add, operator.sub, operator.truediv, torch.add, torch.sub, torch.div, "add", "div"}
_ARITHMETIC |= _PRODUCTS | {operator.iadd, operator.itruediv, "add_", "div_", "clamp", "clamp_", torch.clamp}
_FUNCTIONS = {torch.relu, torch.sigmoid, torch.tanh, "relu", "relu_", "sigmoid", "sigmoid_", "tanh"}
_FUNCTIONS |= {
    F.relu,
    F.relu6,
    F.silu,
    F.hardswish,
    F.hardsigmoid,
    F.sigmoid,
    F.gelu,
    F.leaky_relu,
    F.dropout,
}
_FUNCTIONS |= {F.softplus, F.mish, F.elu, F.hardtanh, F.tanh, F.layer_norm, F.batch_norm}
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(frozen=True)
class Ref:
    """The value of an earlier step."""

    step: int


@dataclass(frozen=True)
class Step:
    """One operation of a traced excitation: what torch.fx calls op, target and arguments."""

    op: str
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Program:
    """A traced excitation: its steps, run on descriptors in place of the map.

    A 1x1 map is its own mean, so the steps are those of the block's forward from the map to the gate.

    Args:
        steps: The steps; the first gives the descriptors.
        fold: Whether the tiles are folded into the batch, because some step reshapes or takes a vector.
        nhwc: Whether the steps take maps as (N, H, W, C).
    """

    steps: tuple[Step, ...]
    fold: bool
    nhwc: bool

    def __call__(self, block: nn.Module, descriptors: Tensor) -> Tensor:
        """Descriptors (N, C, rows, cols) to gates of the same shape."""
        if not self.fold:
            return self._run(block, descriptors)
        n, channels, rows, cols = descriptors.shape
        flat = descriptors.permute(0, 2, 3, 1).reshape(n * rows * cols, 1, 1, channels)
        gates = self._run(block, flat if self.nhwc else flat.permute(0, 3, 1, 2))
        return gates.reshape(n, rows, cols, channels).permute(0, 3, 1, 2)

    def _run(self, block: nn.Module, first: Tensor) -> Tensor:
        values: list[Any] = []
        for step in self.steps:
            args = tuple(_resolve(arg, values) for arg in step.args)
            kwargs = {key: _resolve(value, values) for key, value in step.kwargs}
            if step.op == "placeholder":
                values.append(first)
            elif step.op == "same":
                values.append(args[0])
            elif step.op == "call_module":
                values.append(block.get_submodule(step.target)(*args, **kwargs))
            elif step.op == "call_method":
                values.append(getattr(args[0], step.target)(*args[1:], **kwargs))
            elif step.op == "get_attr":
                values.append(operator.attrgetter(step.target)(block))
            else:
                values.append(step.target(*args, **kwargs))
        return values[-1]


def _resolve(arg: Any, values: list[Any]) -> Any:
    if isinstance(arg, Ref):
        return values[arg.step]
    if isinstance(arg, tuple):
        return tuple(_resolve(item, values) for item in arg)
    return arg


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _NORMS) or next(m.children(), None) is None


class _Miss(Exception):
    """Why a block is no SE block."""

    def __init__(self, reason: str, inline: bool = False) -> None:
        super().__init__(reason)
        self.inline = inline


class Miss(NamedTuple):
    """Why a module is no SE block; ``inline``: it holds one among other things."""

    reason: str
    inline: bool = False


def recognise(block: nn.Module, shape: tuple[int, ...]) -> Dialect | Miss:
    """Read a block's structure.

    Args:
        block: The block, in eval mode.
        shape: Of the map that it was called on, 4 axes.

    Returns:
        Its dialect, or why it is no SE block.
    """
    try:
        graph = _Tracer().trace(block)
    except Exception as error:  # whatever a stranger's forward raises when it meets proxies
        return Miss(
            f"its forward cannot be traced ({first_line(error, 80)}); if it is SE, register a dialect for it"
        )
    try:
        program = _Reader(block, graph, shape).program()
        dialect = Dialect(DIALECT, class_name(type(block)), program, nhwc=program.nhwc)
        _verify(block, dialect, shape)
    except _Miss as miss:
        return Miss(str(miss), miss.inline)
    return dialect


class _Reader:
    """Reads one traced forward as SE, or raises _Miss with the reason."""

    def __init__(self, block: nn.Module, graph: fx.Graph, shape: tuple[int, ...]) -> None:
        self.block = block
        self.graph = graph
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        if not inputs:
            raise _Miss("it takes no input")
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
            raise _Miss("no dense layer (Linear or 1x1 convolution) lies between the mean and the gate")
        if not squeezed.get(gate):
            raise _Miss("its gate does not come from a mean over the whole map")
        return Program(tuple(steps), self.fold or self.nhwc, self.nhwc)

    def gate(self) -> fx.Node:
        """The factor of the product that is not the map itself."""
        output = next(node for node in self.graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node):
            raise _Miss("it gives back several values")
        if output.op == "placeholder" or self.kind(output) not in _PRODUCTS:
            raise self.no_product()
        factors = [arg for arg in output.args[:2] if isinstance(arg, fx.Node)]
        gates = [factor for factor in factors if self.origin(factor) is not self.x]
        if len(factors) != 2 or len(gates) != 1:
            raise self.no_product()
        return gates[0]

    def no_product(self) -> _Miss:
        for node in self.graph.nodes:
            if node.op == "placeholder" or self.kind(node) not in _PRODUCTS:
                continue
            factors = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)]
            for gate, other in zip(factors, reversed(factors)):
                pools = [n for n in _ancestors(gate) if n.op != "placeholder" and self.kind(n) in _MEANS]
                if any(self.origin(arg) is self.origin(other) for n in pools for arg in n.all_input_nodes):
                    return _Miss(
                        "its squeeze, excitation and product are part of a larger forward; give them a "
                        "module of their own to have them found",
                        inline=True,
                    )
        return _Miss(NOT_MULTIPLIED)

    def origin(self, node: fx.Node) -> fx.Node:
        """The node that this one passes on unchanged."""
        while node.op == "call_module" and self.kind(node) is nn.Identity:
            node = node.all_input_nodes[0]
        return node

    def check(self, node: fx.Node, squeezed: dict[fx.Node, bool]) -> bool:
        """Say whether a node completes the squeeze; raise _Miss where it is nothing that an SE block does."""
        kind = self.kind(node)
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
        sources = [squeezed[n] for n in node.all_input_nodes if n in squeezed]
        if not sources or kind in _SHAPES or self.shapes.of(node) is None:
            return False  # sizes and numbers, no values of the map
        if kind in ("expand_as", "view_as") and squeezed.get(node.args[0]):  # type: ignore[arg-type]
            squeezed[node] = self.fold = True
            return False
        if not all(sources):
            if any(sources):
                raise _Miss(f"its gate mixes pooled and unpooled values in {name}")
            return self.check_squeeze(node, kind, name, squeezed)
        squeezed[node] = True
        self.check_excite(node, kind, name)
        return False

    def check_squeeze(self, node: fx.Node, kind: Any, name: str, squeezed: dict[fx.Node, bool]) -> bool:
        if kind in _MAXIMA:
            raise _Miss(f"its squeeze takes a maximum ({name}), not only a mean")
        if kind in _VIEWS:
            squeezed[node] = False
            self.fold = self.fold or kind not in (nn.Identity, "contiguous")
            return False
        if kind not in _MEANS:
            raise _Miss(f"the map passes {name} before it is pooled")
        before, after = self.shapes.of(node.all_input_nodes[0]), self.shapes.of(node)
        batch, channels = self.shapes.batch, self.channels
        if after is None or before is None:
            raise _Miss("the shape of its squeeze is not known")
        count = 1
        for size in after:
            count *= size
        if len(before) == 4 and len(after) in (2, 4) and self.shapes.mean_axes(node, len(before)) == {1, 2}:
            self.nhwc, self.channels = True, before[3]
            channels = before[3]
        squeezed[node] = count == batch * channels
        one_axis = len(self.shapes.mean_axes(node, len(before))) == 1
        if not squeezed[node] and len(after) == len(before) and not one_axis:
            raise _Miss(f"its squeeze leaves {tuple(after[2:])} values a channel, not one")
        # A mean over one axis at a time has a meaning for one tile only, and so has one that drops axes.
        self.fold = self.fold or one_axis or len(after) != 4
        return squeezed[node]

    def check_excite(self, node: fx.Node, kind: Any, name: str) -> None:
        if kind in _RESHAPES:
            self.fold = self.fold or kind not in (nn.Identity, "contiguous")
            return
        if node.op == "call_module":
            layer = self.block.get_submodule(str(node.target))
            if isinstance(layer, nn.Linear):
                self.dense += 1
                self.fold = True
            elif isinstance(layer, nn.Conv2d):
                if layer.kernel_size != (1, 1) or layer.groups != 1 or layer.stride != (1, 1):
                    raise _Miss(
                        f"its excitation has {name} '{node.target}', which is no dense 1x1 convolution"
                    )
                self.dense += 1
            elif isinstance(layer, (nn.Conv1d, nn.Conv3d)):
                raise _Miss(
                    f"its excitation has {name} '{node.target}': a convolution along the channels, "
                    "not a dense layer (as ECA has)"
                )
            elif not isinstance(layer, _NORMS) and any(True for _ in layer.parameters()):
                raise _Miss(f"its excitation has {name} '{node.target}', which is no layer of SE")
            return
        if kind in (F.linear, F.conv2d):
            self.dense += 1
            self.fold = True
        elif kind not in _ARITHMETIC | _FUNCTIONS:
            raise _Miss(f"its excitation calls {name}, which is no step of SE")

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
            raise _Miss(
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


def _verify(block: nn.Module, dialect: Dialect, shape: tuple[int, ...]) -> None:
    """Run the block and our reading of it on a small map; they must agree."""
    parameter = next(block.parameters(), None)
    if parameter is None or parameter.is_meta:
        return
    # A fixed window (AvgPool2d) wants the real size; others are checked on a small map.
    channels = shape[3] if dialect.nhwc else shape[1]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 5, 6, generator=generator).to(parameter)
    try:
        expected = _run_block(block, x, dialect.nhwc)
    except (RuntimeError, ValueError):
        try:
            x = torch.randn(1, channels, *_map_size(shape, dialect.nhwc), generator=generator).to(parameter)
            expected = _run_block(block, x, dialect.nhwc)
        except (RuntimeError, ValueError):
            return
    whole = Tile.parse("HxW")
    with torch.no_grad():
        try:
            got = scale(x, dialect.excite(block, squeeze(x, whole)), whole)
        except Exception as error:
            raise _Miss(f"read as SE it fails: {first_line(error, 80)}") from None
    tolerance = 1e-2 if x.dtype in (torch.float16, torch.bfloat16) else 1e-4
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        raise _Miss("read as SE it gives other numbers than its own forward")


def _map_size(shape: tuple[int, ...], nhwc: bool) -> tuple[int, int]:
    return (shape[1], shape[2]) if nhwc else (shape[2], shape[3])


def _run_block(block: nn.Module, x: Tensor, nhwc: bool) -> Tensor:
    with torch.no_grad():
        if nhwc:
            return block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return block(x.clone())
