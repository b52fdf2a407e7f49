"""A module whose forward has SE inline, with that forward rewritten to call the SE blocks as its children.

The module stays what it is, an instance of (a subclass of) its class with the same state_dict. Its forward is traced
when it is called, once for each way of calling it: mode, attributes and arguments that are no tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from ..errors import TiledSEError
from .block import TiledBlock
from .inline_block import InlineDialect, InlineSE
from .inline_regions import Region, body, compiled, kinds, regions, replace, steps_of
from .inline_trace import Call, NotTraced, signature, trace
from .reasons import NoBlock

# More ways of calling one module than a network has; a number that changes at each call would fill the memory.
_MOST_TRACES = 32


class InlineHost(nn.Module):
    """What is added to the class of a module whose forward has SE inline."""

    _tiledse_source: type[nn.Module]
    _tiledse_blocks: dict[str, InlineDialect]
    _tiledse_opened: tuple[str, ...]
    _tiledse_traces: dict[Any, Any]

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = list(super().__reduce_ex__(protocol))
        made[:2] = _remake, (self._tiledse_source,)
        made[2] = {**vars(self), "_tiledse_traces": {}}  # code: it is traced again
        return tuple(made)


def host_class(source: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a module's class whose forward calls its SE blocks."""
    if source not in _CLASSES:
        _CLASSES[source] = _subclass(source)
    return _CLASSES[source]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _subclass(source: type[nn.Module]) -> type[nn.Module]:

    @functools.wraps(source.forward)
    def forward(self: InlineHost, *args: Any, **kwargs: Any) -> Any:
        call = Call(args, kwargs)
        if any(isinstance(tensor, fx.Proxy) for tensor in call.tensors):
            raise TiledSEError(
                f"torch.fx cannot trace the forward of '{source.__name__}', which has SE inline and is itself traced "
                "for each way of calling it; use torch.export or torch.jit.trace"
            )
        key = signature(self, self._tiledse_opened, call)
        run = self._tiledse_traces.get(key)
        if run is None:
            if len(self._tiledse_traces) == _MOST_TRACES:
                self._tiledse_traces.clear()
            run = self._tiledse_traces[key] = compiled(_rewritten(self, call))
        return run(self, *call.tensors)

    names = {"forward": forward, "__module__": source.__module__, "__doc__": source.__doc__}
    return type(source.__name__, (InlineHost, source), names)


def _remake(source: type[nn.Module]) -> nn.Module:
    cls = host_class(source)
    return cls.__new__(cls)


def install(host: nn.Module, blocks: dict[str, InlineDialect]) -> None:
    """Rewrite the forward of this very module to call its SE blocks, which become children of it."""
    host._tiledse_source = type(host)  # type: ignore[assignment]
    host._tiledse_blocks = blocks  # type: ignore[assignment]
    opened = {name for dialect in blocks.values() for name in dialect.opened}
    host._tiledse_opened = tuple(sorted(opened))  # type: ignore[assignment]
    host._tiledse_traces = {}  # type: ignore[assignment]
    object.__setattr__(host, "__class__", host_class(type(host)))
    for name, dialect in blocks.items():
        host.add_module(name, InlineSE(host, dialect))


def settle(model: nn.Module) -> None:
    """Give modules of this very network, in which no inline SE block has a tile, their own forward back."""
    for host in list(model.modules()):
        if isinstance(host, InlineHost):
            names = list(host._tiledse_blocks)
            if not any(isinstance(host._modules[name], TiledBlock) for name in names):
                object.__setattr__(host, "__class__", host._tiledse_source)
                for name in names:
                    del host._modules[name]
                for key in [key for key in vars(host) if key.startswith("_tiledse_")]:
                    del host.__dict__[key]


def free_name(host: nn.Module, taken: Iterable[str]) -> str:
    """A name for an inline SE block that the module has no attribute of."""
    number, taken = 1, set(taken)
    while (name := f"inline_se_{number}" if number > 1 else "inline_se") in taken or hasattr(host, name):
        number += 1
    return name


def _rewritten(host: InlineHost, call: Call) -> fx.Graph:
    """The graph of this call with its SE blocks as children.

    Raises:
        TiledSEError: called like this, the forward cannot be traced, or has other SE than it had when it was found.
    """
    name, wanted = type(host).__name__, dict(host._tiledse_blocks)
    try:
        graph = trace(host, host._tiledse_source, host._tiledse_opened, call)
    except NotTraced as why:
        raise TiledSEError(
            f"the forward of '{name}' has SE inline and cannot be rewritten as it is called here: {why}; call it as "
            "it was called when its SE was found"
        ) from None
    chosen: list[tuple[Region, str]] = []
    for region in regions(graph, kinds(host)):
        try:
            steps = steps_of(body(region))
        except NoBlock:
            continue
        for child, dialect in wanted.items():
            assert dialect.body is not None
            if dialect.body.of(host.training) == steps:
                chosen.append((region, child))
                del wanted[child]
                break
    if wanted:
        raise TiledSEError(
            f"the forward of '{name}' has SE inline, and called like this it computes other SE than when it was "
            f"found ({', '.join(wanted)}); find and convert the network as it is called here"
        )
    for region, child in reversed(chosen):  # a later map may be an earlier product
        replace(graph, region, child)
    return graph
