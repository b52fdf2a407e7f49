"""Run many tiled forms of one PyTorch network on the same images, the part before the first tiled block only once.

The SE network's operators are numbered as they run. A tiled form runs the same operators up to its first tiled block,
so it is run with those operators replaced by what they gave before: nothing of them is computed again, and what
follows is the network's own code on the same tensors. Results are those of a plain run, but for the last digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..network import SharedPrefix, first_tiled
from ..plan import Plan
from .modes import evaluating


class _Diverged(Exception):
    """The operators are not those that were recorded."""


@dataclass
class _Trace:
    """The operators of one run.

    Attributes:
        names: Of the operators, in order.
        starts: For each block, the number of the first operator of its first call.
        last_use: For each operator, the number of the last one that takes what it gave; -1 for none.
        unsafe: Blocks after which something from before them is written to.
    """

    names: list[str] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)
    last_use: list[int] = field(default_factory=list)
    unsafe: set[int] = field(default_factory=set)

    def crossing(self, starts: Sequence[int]) -> set[int]:
        """Operators before one of these places whose values are used after it."""
        return {
            number
            for number, last in enumerate(self.last_use)
            if any(number < start <= last for start in starts)
        }


class _Tracer(TorchDispatchMode):
    """Notes the operators of a run on one image, and how long their values are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = _Trace()
        self.values: list[list[Tensor]] = []  # held, so that neither ids nor storages are used twice
        self.makers: dict[int, list[int]] = {}
        self.written: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        number = len(self.trace.names)
        self.trace.names.append(str(func))
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in taken:
            for maker in self.makers.get(id(tensor), ()):
                self.trace.last_use[maker] = number
        if func._schema.is_mutable:
            self.written += [(number, _storage(tensor)) for tensor in _written(func, args, kwargs)]
        result = func(*args, **kwargs)
        self.trace.last_use.append(-1)
        self.values.append([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)])
        for tensor in self.values[-1]:
            self.makers.setdefault(id(tensor), []).append(number)
        return result

    def finish(self, output: Any, inputs: Tensor) -> _Trace:
        """Close the trace: what the network gives is needed to the end."""
        trace = self.trace
        for leaf in tree_leaves(output):
            for maker in self.makers.get(id(leaf), ()) if isinstance(leaf, Tensor) else ():
                trace.last_use[maker] = len(trace.names)
        spans = [
            (_storage(tensor), maker, trace.last_use[maker])
            for maker, tensors in enumerate(self.values)
            for tensor in tensors
        ]
        spans.append((_storage(inputs), -1, len(trace.names)))
        for block, start in trace.starts.items():
            late = {storage for number, storage in self.written if number >= start}
            if any(storage in late and maker < start <= last for storage, maker, last in spans):
                trace.unsafe.add(block)
        return trace


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operator writes into."""
    given = {
        argument.name: args[at] if at < len(args) else kwargs.get(argument.name)
        for at, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(frozen=True)
class _Lost:
    """The form of a tensor that nothing after the prefix looks into."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fill(self) -> Tensor:
        # Of the same strides, because operators choose views or copies by them. Its memory is never touched.
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


class _Recorder(TorchDispatchMode):
    """Keeps what the operators of the SE network give, as far as a tiled form will need it."""

    def __init__(self, trace: _Trace, kept: set[int], end: int) -> None:
        super().__init__()
        self.trace, self.kept, self.end = trace, kept, end
        self.values: list[Any] = []
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number, self.number = self.number, self.number + 1
        if number >= len(self.trace.names) or self.trace.names[number] != str(func):
            raise _Diverged
        result = func(*args, **(kwargs or {}))
        if number < self.end:
            self.values.append(result if number in self.kept else tree_map(_forget, result))
        return result


def _forget(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return _Lost(tuple(leaf.shape), tuple(leaf.stride()), leaf.dtype, leaf.device)


class _Player(TorchDispatchMode):
    """Gives what was recorded in place of the first ``start`` operators, and runs the rest."""

    def __init__(self, recorder: _Recorder, start: int) -> None:
        super().__init__()
        self.recorder, self.start = recorder, start
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number, self.number = self.number, self.number + 1
        if number >= self.start:
            return func(*args, **(kwargs or {}))
        if self.recorder.trace.names[number] != str(func):
            raise _Diverged
        return tree_map(
            lambda leaf: leaf.fill() if isinstance(leaf, _Lost) else leaf, self.recorder.values[number]
        )


class Replayed(SharedPrefix):
    """``SharedPrefix`` of a PyTorch network.

    The first image is run both ways, for each place where a tiled form begins. Where the two differ in a single bit, or
    where the network writes into tensors that the forms share, the forms that begin there are run whole; ``unshared``
    names those blocks.

    Args:
        model: The network with plain SE.
        plans: Its forms.
        networks: Each form, with the parameters of ``model``.

    Example:
        >>> import timm
        >>> from tiledse.networks.network import TorchNetwork
        >>> network = TorchNetwork(timm.create_model("regnety_002").eval(), (3, 64, 64))
        >>> plan = network.se.with_tile("1xW", "s3.*")
        >>> run, x = network.branches([plan]), torch.randn(2, 3, 64, 64)
        >>> se, tse = run(x)
        >>> torch.equal(tse, network.tiled(plan)(x)), run.unshared
        (True, ())
    """

    def __init__(self, model: nn.Module, plans: Sequence[Plan], networks: Sequence[nn.Module]) -> None:
        self.model = model
        self.networks = networks
        self.names = [block.name for block in plans[0].blocks] if plans else []
        self.firsts = [first_tiled(plan) for plan in plans]
        self._trace: _Trace | None = None
        self._whole: set[int] = set()

    def __call__(self, inputs: Tensor) -> Iterator[Any]:
        """See SharedPrefix."""
        with evaluating(self.model), torch.no_grad():
            if self._trace is None:
                self._prepare(inputs[:1].clone())
            yield from self._run(inputs, self._trace)

    def _prepare(self, image: Tensor) -> None:
        """Number the operators on one image, and compare with plain runs."""
        tracer = _Tracer()
        trace = tracer.trace
        handles = []
        for block, name in enumerate(self.names):

            def start(*_: Any, block: int = block) -> None:
                trace.starts.setdefault(block, len(trace.names))

            handles.append(self.model.get_submodule(name).register_forward_pre_hook(start))
        try:
            with tracer:
                output = self.model(image)
            self._trace = tracer.finish(output, image)
        finally:
            for handle in handles:
                handle.remove()
        self._whole = set(trace.unsafe) & {first for first in self.firsts if first is not None}
        checked: set[int] = set()
        for at, (first, got) in enumerate(zip(self.firsts, list(self._run(image, trace))[1:], strict=True)):
            if first is not None and first not in checked:
                checked.add(first)
                if not _equal(got, self.networks[at](image)):
                    self._whole.add(first)
        self._name_whole()

    def _name_whole(self) -> None:
        self.unshared = tuple(self.names[block] for block in sorted(self._whole))

    def _run(self, inputs: Tensor, trace: _Trace | None) -> Iterator[Any]:
        assert trace is not None
        starts = sorted({trace.starts[f] for f in self.firsts if f is not None and f not in self._whole})
        recorder = _Recorder(trace, trace.crossing(starts), starts[-1] if starts else 0)
        try:
            with recorder:
                se = self.model(inputs)
        except _Diverged:
            # Another batch size may take another way through the network's code: run all forms whole.
            self._whole = {first for first in self.firsts if first is not None}
            self._name_whole()
            se = self.model(inputs)
        yield se
        for first, network in zip(self.firsts, self.networks, strict=True):
            if first is None:
                yield se
            elif first in self._whole:
                yield network(inputs)
            else:
                try:
                    with _Player(recorder, trace.starts[first]):
                        output = network(inputs)
                except _Diverged:
                    self._whole.add(first)
                    self._name_whole()
                    output = network(inputs)
                yield output


def _equal(a: Any, b: Any) -> bool:
    left, right = tree_leaves(a), tree_leaves(b)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(left, right)
    )
