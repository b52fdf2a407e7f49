"""Find SE that is written inline in a larger forward, and make it a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import TiledSEError, first_line
from ..plan import NearMiss
from .block import TiledBlock
from .dialects import class_name
from .duplicating import deep_copy
from .inline_block import DIALECT, ByMode, InlineDialect, InlineSE
from .inline_host import InlineHost, free_name, install, settle
from .inline_proof import prove
from .inline_regions import Kind, Region, body, kinds, regions, steps_of
from .inline_steps import Steps
from .inline_trace import Call, NotTraced, trace
from .leaks import Leaks
from .modes import evaluating
from .norm_shapes import NormShapes
from .own_forward import OwnForward
from .reasons import INLINE, NoBlock
from .recognition import recognise

# From a pool up: the layers about it that are no module of their own, and what holds them.
_LEVELS = 4
_SPREADS = {"expand", "expand_as", "repeat"}


@dataclass
class Outlined:
    """What was made of a network.

    Attributes:
        model: A network with the same weights in which the blocks are children of the modules that hold them; None
            where there is no such block.
        refused: By module name, why what looks like inline SE is none.
        unread: By module name, why its forward cannot be read at all.
    """

    model: nn.Module | None = None
    refused: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def told(self, miss: NearMiss) -> NearMiss:
        """A near miss; where it is inline SE, with the reason for which it did not become a block."""
        reason = self.refused.get(miss.name)
        if reason is None and miss.reason.startswith(INLINE):
            reason = self.unread.get(miss.name)
        return miss if reason is None else NearMiss(miss.name, f"{INLINE}, and {reason}")


def outline(model: nn.Module, pools: Sequence[str], calls: dict[str, list[Call]]) -> Outlined:
    """Make SE blocks that are written inline modules of their own.

    Args:
        model: The network; it is left as it was.
        pools: Names of the modules in which whole maps are pooled, and which are no SE blocks.
        calls: By module name, how it is called.
    """
    tensors: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    made = deep_copy(model, tensors)
    result = Outlined()
    hosts: dict[str, bool] = {}
    with evaluating(made):
        for pool in dict.fromkeys(pools):
            name = pool
            for _ in range(_LEVELS):
                if name not in hosts:
                    hosts[name] = _outline_module(made, name, calls.get(name, []), result)
                if hosts[name] or name in result.refused or not name:
                    break
                name = name.rpartition(".")[0]
    for module in made.modules():
        if isinstance(module, InlineHost):
            for child in module._tiledse_blocks:
                module.get_submodule(child).train(module.training)
    result.model = made if any(hosts.values()) else None
    return result


def outline_again(model: nn.Module, names: Sequence[str], dialects: Sequence[Any]) -> None:
    """Make the inline SE blocks of a plan children of the modules of this very network that hold them.

    Args:
        model: The network: as it was found, or converted.
        names: Of the blocks that were found in it.
        dialects: One for each block.
    """
    hosts: dict[str, dict[str, InlineDialect]] = {}
    for name, dialect in zip(names, dialects, strict=True):
        if isinstance(dialect, InlineDialect):
            host, _, child = name.rpartition(".")
            hosts.setdefault(host, {})[child] = dialect
    for name, blocks in hosts.items():
        if not isinstance(model.get_submodule(name), InlineHost):
            install(model.get_submodule(name), blocks)


def _outline_module(model: nn.Module, name: str, calls: list[Call], result: Outlined) -> bool:
    """Rewrite one module of this network where it has SE inline; say whether it has."""
    host = model.get_submodule(name)
    if (
        isinstance(host, (InlineHost, InlineSE, TiledBlock))
        or not calls
        or next(host.children(), None) is None
    ):
        return False
    try:
        found, why = _read(host, calls[0])
    except NotTraced as error:
        result.unread[name] = str(error)
        return False
    if why:
        result.refused[name] = why
    if not found:
        return False
    blocks: dict[str, InlineDialect] = {}
    for dialect in found:
        blocks[free_name(host, blocks)] = dialect
    try:
        if "forward" in vars(host):
            raise NotTraced("that forward is set on the instance")
        install(host, blocks)
        prove(host, calls)
    except (NotTraced, NoBlock, TiledSEError) as error:
        settle(host)
        result.refused[name] = str(error)
        return False
    return True


def _read(host: nn.Module, call: Call) -> tuple[list[InlineDialect], str]:
    """The SE blocks in the forward of a module, in eval mode; and why one is none.

    Raises:
        NotTraced: the forward cannot be traced.
    """
    opened: tuple[str, ...] = ()
    kind = kinds(host)
    while True:
        graph = trace(host, type(host), opened, call)
        shapes = _shapes(host, graph, call)
        likely = [region for region in regions(graph, kind) if _gates_channels(region, kind, shapes)]
        inner = {name for region in likely for name in _composites(host, region)}
        if inner <= set(opened):
            break
        opened = tuple(sorted(inner.union(opened)))
    training = _in_training(host, opened, call)
    found: list[InlineDialect] = []
    why = ""
    for region in likely:
        try:
            found.append(_dialect(host, region, shapes[region.x], training))
        except NoBlock as miss:
            why = str(miss)
    return found, why


def _dialect(
    host: nn.Module, region: Region, shape: tuple[int, ...], training: list[Steps] | str
) -> InlineDialect:
    """A region as SE.

    Raises:
        NoBlock: it is none.
    """
    steps = steps_of(body(region))
    if isinstance(training, str):
        modes = ByMode(steps, None, training)
    else:
        # Each is taken once, for the same layers may be called twice.
        other = next((one for one in training if steps.resembles(one)), None)
        modes = ByMode(steps, other, "" if other else "what it computes there is something else")
        if other is not None:
            training.remove(other)
    opened = tuple(sorted({name for node in region.nodes for name in node.meta["opened"]}))
    made = InlineDialect(DIALECT, class_name(type(host)), OwnForward(), body=modes, opened=opened)
    read = recognise(InlineSE(host, made), shape).dialect
    return replace(made, excite=OwnForward(read.nhwc, read.axes), nhwc=read.nhwc, axes=read.axes)


def _in_training(host: nn.Module, opened: tuple[str, ...], call: Call) -> list[Steps] | str:
    """The steps of all products in training mode, or why there are none."""
    modes = [(module, module.training) for module in host.modules()]
    host.train()
    found = []
    try:
        for region in regions(trace(host, type(host), opened, call), kinds(host)):
            try:
                found.append(steps_of(body(region)))
            except NoBlock:
                continue
    except NotTraced as why:
        return str(why)
    finally:
        for module, mode in modes:
            module.training = mode
    return found


def _shapes(host: nn.Module, graph: fx.Graph, call: Call) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of every tensor in a traced forward.

    Raises:
        NotTraced: the graph does not run on shapes alone.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    shapes: dict[fx.Node, tuple[int, ...]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = tuple(value.shape)
            return value

    leaks = Leaks(host)
    twin = deep_copy(host, {id(p): p for p in host.parameters()})
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), NormShapes(), leaks:
            Recorder(fx.GraphModule(twin, graph)).run(*call.zeros())
    except Exception as error:  # a stranger's layers may raise anything
        raise NotTraced(f"it does not run on shapes alone: {first_line(error, 80)}") from None
    finally:
        leaks.undo()
    return shapes


def _gates_channels(region: Region, kind: Kind, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    """Whether a product multiplies a map by one number a channel."""
    x = shapes.get(region.x, ())
    gates = [arg for arg in region.product.all_input_nodes if arg in region.nodes]
    ones = (1,) * (len(x) - 2)
    if not 3 <= len(x) <= 5 or x[2:] == ones or not gates:
        return False
    gate = shapes.get(gates[-1], ())
    per_channel = len(gate) == len(x) and (gate[2:] == ones or gate[1:-1] == ones)
    return per_channel or kind(gates[-1]) in _SPREADS


def _composites(host: nn.Module, region: Region) -> list[str]:
    """Names of the layers of a region that have layers of their own."""
    names = [str(node.target) for node in region.nodes if node.op == "call_module"]
    return [n for n in names if _has_layers(host.get_submodule(n))]


def _has_layers(module: nn.Module) -> bool:
    layer = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.modules.batchnorm._NormBase))
    return next(module.children(), None) is not None and not layer
