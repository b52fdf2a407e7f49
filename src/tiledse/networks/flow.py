"""Follow the maps of a run: which are pooled whole, and which of them meet what was made of their pool again.

What is followed are the operators that torch runs, so that the spelling in Python is of no account: a mean, a sum of
sums, a pool and a product with a vector of 1 / (H * W) all drop the axes of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The position of the axes that each of these reduces over, among its arguments.
_REDUCTIONS = {
    "mean": 1, "sum": 1, "amax": 1, "amin": 1, "std": 1, "var": 1, "var_mean": 1, "std_mean": 1, "logsumexp": 1,
    "prod": 1, "max": 1, "min": 1, "median": 1, "nanmean": 1, "nansum": 1, "norm": 2, "linalg_vector_norm": 2,
}  # fmt: skip
_POOLS = {
    "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d_with_indices",
    "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "max_pool3d_with_indices",
}  # fmt: skip
_MATMULS = {"mm": 0, "bmm": 0, "mv": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}
_PRODUCTS = {"mul", "mul_", "div", "div_", "addcmul", "addcmul_"}
_MULTIPLIES = {name for name in _PRODUCTS if not name.startswith("div")}
_COPIES = {"clone", "_to_copy", "contiguous", "view_copy", "_reshape_copy"}
MEANS = {
    "mean",
    "sum",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d",
    "nanmean",
    "nansum",
    *_MATMULS,
}

_MEANS_OF_MAPS = MEANS & {"mean", *_POOLS}

# Axes of a map without its channels: (N, C, H, W), (N, H, W, C), either over the batch too, and the same of volumes.
_WHOLE = {
    4: [{2, 3}, {1, 2}, {0, 2, 3}, {0, 1, 2}],
    5: [{2, 3, 4}, {1, 2, 3}, {3, 4}, {0, 2, 3, 4}, {0, 1, 2, 3}],
    3: [{2}, {1}],
}


class Atom(NamedTuple):
    """An axis of a map, as it lies in memory."""

    stride: int
    size: int
    axis: int


@dataclass
class _Memory:
    """What is known of a piece of memory."""

    ref: StorageWeakRef
    content: int
    atoms: tuple[Atom, ...] = ()
    axes: int = 0
    reduced: frozenset[int] = frozenset()
    flat: frozenset[int] = frozenset()
    kinds: frozenset[str] = frozenset()
    origin: int | None = None
    pools: frozenset[int] = frozenset()
    masked: frozenset[int] = frozenset()
    given: bool = False  # whether it was made of what the network was given


@dataclass
class Pool:
    """A map that was pooled whole.

    Attributes:
        content: Which map; ``Flow.content`` gives the same for it.
        axes: Of the map.
        kinds: The operators that pooled it.
        stack: What ``where`` gave when it was pooled.
        product: What ``where`` gave when something made of the pool was multiplied onto the map.
        quiet: Whether it is of account only where it meets its map again: three axes may be (N, tokens, C), whose sums
            are those of norms and attention.
        masked: Of a map some frames of which were set to 0 before it was pooled: the maps that it was.
        part: The axes over which a mean was taken, where it is not all of them: a gate a frequency, say. Such a pool is
            quiet.
    """

    content: int
    axes: int
    kinds: frozenset[str]
    stack: Any
    product: Any = None
    quiet: bool = False
    masked: frozenset[int] = frozenset()
    part: frozenset[int] = frozenset()


@dataclass
class Flow(TorchDispatchMode):
    """Notes the pools of what runs inside it.

    Args:
        where: What to note of the place in the network.

    Attributes:
        pools: The maps that were pooled whole.
        gates: What ``where`` gave when a map was multiplied by one number a channel that was made of the input, though
            no pool is known that it was made of: sums over codewords, convolutions as large as the map.
    """

    where: Callable[[], Any]
    pools: list[Pool] = field(default_factory=list)
    gates: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._memory: dict[int, _Memory] = {}
        self._contents = 0

    def __hash__(self) -> int:
        return id(self)

    def content(self, tensor: Tensor) -> int:
        """A number for what a tensor holds: views and copies have the same, and what is written in place another."""
        return self._of(tensor).content

    def given(self, tensors: Iterable[Tensor]) -> None:
        """Say what the network is given: its maps, frames and tokens; a vector (a time, a class) has no rows."""
        for tensor in tensors:
            self._of(tensor).given = tensor.dim() >= 3

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if _followed(leaf)]
        if inputs:
            name = str(func._overloadpacket).rpartition(".")[2]
            self._note(func, name, args, inputs, [leaf for leaf in tree_leaves(out) if _followed(leaf)])
        return out

    def _note(self, func: Any, name: str, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        known = [self._of(tensor) for tensor in inputs]
        closed = self._products(known, name) if name in _PRODUCTS else frozenset()
        if not closed and name in _MULTIPLIES and self._gated(inputs, known):
            self.gates.append(self.where())
        made = frozenset().union(*(memory.pools for memory in known)) - closed
        given = any(memory.given for memory in known)
        for out in outputs:
            memory = self._of(out)
            memory.given |= given
            if any(memory is one for one in known):
                if func._schema.is_mutable:
                    memory.content, memory.pools = self._new(), memory.pools | made
                continue
            memory.pools = made
            memory.masked = self._masked(name, inputs, known, out)
            if name in _COPIES:
                source = known[0]
                memory.content, memory.axes = source.content, source.axes
                memory.reduced, memory.flat = source.reduced, source.flat
                memory.kinds, memory.origin = source.kinds, source.origin
                memory.atoms = _copied(source.atoms, inputs[0], out)
            elif out.shape == inputs[0].shape and known[0].atoms:
                memory.atoms, memory.axes = _copied(known[0].atoms, inputs[0], out), known[0].axes
        if outputs:
            self._pool(name, args, inputs, outputs[0])

    def _masked(self, name: str, inputs: list[Tensor], known: list[_Memory], out: Tensor) -> frozenset[int]:
        """The maps of sound or volumes that a result is, but for frames that a mask of one channel has set to 0."""
        if name not in ("mul", "masked_fill") or out.dim() not in (3, 5) or len(inputs) < 2:
            return frozenset()
        for one, other in ((0, 1), (1, 0)):
            x, mask, memory = inputs[one], inputs[other], known[one]
            of_frames = mask.dim() == x.dim() and mask.shape[1] == 1 < x.shape[1] and not known[other].pools
            if x.shape == out.shape and of_frames:
                return memory.masked | {memory.content}
        return frozenset()

    def _products(self, known: list[_Memory], name: str) -> frozenset[int]:
        """The pools that meet their map again in a product."""
        contents = {memory.content for memory in known}
        closed = {
            i
            for memory in known
            for i in memory.pools
            if contents & {self.pools[i].content, *self.pools[i].masked}
        }
        for i in closed:
            if self.pools[i].quiet and name.startswith("div"):
                continue  # a row over its own sum is a norm
            self.pools[i].product = self.pools[i].product or self.where()
        return frozenset(closed)

    def _gated(self, inputs: list[Tensor], known: list[_Memory]) -> bool:
        """Whether a product is of a map and one number a channel, made of the input by no pool but those of the map."""
        for x, of_x in zip(inputs, known):
            for gate, of_gate in zip(inputs, known):
                if x.dim() in (4, 5) and gate.dim() == x.dim() and of_x.given and of_gate.given:
                    for channels in (1, x.dim() - 1):
                        sides = [d for d in range(1, x.dim()) if d != channels]
                        many = any(not _repeats(x, d) for d in sides)
                        one = all(_repeats(gate, d) for d in sides)
                        if many and one and gate.shape[channels] == x.shape[channels] > 1:
                            own = of_gate.pools - of_x.pools
                            return all(self.pools[i].quiet for i in own)
        return False

    def _pool(self, name: str, args: Any, inputs: list[Tensor], out: Tensor) -> None:
        for x, dims in _reduced(name, args, out):
            memory = self._of(x)
            if (x.dim() < 3 and not memory.atoms) or out.numel() > x.numel():
                continue
            begun = memory.reduced and memory.origin is not None
            as_map = (_as_map(x), x.dim()) if x.dim() in (3, 4, 5) and _is_whole(x) else None
            # A reduction that goes on with an earlier one; else one of this very map.
            flat = x.dim() == 3 and bool(memory.atoms)  # of a map with more axes, maybe
            first = begun or as_map is None or flat
            ways = [(memory.atoms, memory.axes or x.dim(), memory.origin)] if first else []
            ways += [(*as_map, None)] if as_map is not None else []
            for atoms, axes, origin in ways:
                step = self._reduce(memory, x, dims, atoms, axes, origin)
                if step is None:
                    continue
                step.kinds = step.kinds | {name}
                whole = any(step.reduced | (step.flat & all_) == all_ for all_ in _WHOLE.get(axes, []))
                if whole and (axes > 3 or name not in _MATMULS):
                    assert step.origin is not None
                    quiet = axes == 3 and (flat or name != "mean" or 2 not in step.reduced)
                    masked = memory.masked if origin is None else frozenset()
                    self.pools.append(
                        Pool(step.origin, axes, step.kinds, self.where(), quiet=quiet, masked=masked)
                    )
                    self._of(out).pools |= {len(self.pools) - 1}
                    return
            begin = self._reduce(memory, x, dims, *ways[0])
            if begin is not None:
                result = self._of(out)
                if begin.reduced and name in _MEANS_OF_MAPS and x.dim() in (4, 5) and memory.given:
                    self._part(begin, x, name, result)
                result.reduced, result.origin, result.axes = begin.reduced, begin.origin, begin.axes
                result.kinds, result.flat = begin.kinds | {name}, begin.flat
                result.atoms = _kept(ways[0][0], x, out, dims)

    def _part(self, begin: _Memory, x: Tensor, name: str, result: _Memory) -> None:
        """Note a mean over some of the axes of a map but batch and channels, which may gate it."""
        if begin.origin is not None and not begin.reduced & {0, 1}:
            kinds = begin.kinds | {name}
            self.pools.append(
                Pool(begin.origin, x.dim(), kinds, self.where(), quiet=True, part=begin.reduced)
            )
            result.pools |= {len(self.pools) - 1}

    def _reduce(
        self,
        memory: _Memory,
        x: Tensor,
        dims: list[int],
        atoms: tuple[Atom, ...],
        axes: int,
        origin: int | None,
    ) -> _Memory | None:
        """What is reduced by now, in the axes of one reading of a map; None where a part of an axis is."""
        over = [_axes(atoms, x, dim) for dim in dims]
        if any(part is None for part in over):
            return None
        earlier = memory.reduced if origin is not None else frozenset()
        reduced = earlier.union(*(part for part in over if part is not None))
        flat = memory.flat if origin is not None else frozenset(a.axis for a in atoms if a.size == 1)
        kinds = memory.kinds if origin is not None else frozenset()
        return _Memory(
            memory.ref,
            memory.content,
            atoms,
            axes,
            reduced,
            flat,
            kinds,
            memory.content if origin is None else origin,
        )

    def _of(self, tensor: Tensor) -> _Memory:
        storage = tensor.untyped_storage()
        memory = self._memory.get(storage._cdata)
        if memory is None or memory.ref.expired():
            memory = _Memory(StorageWeakRef(storage), self._new())
            self._memory[storage._cdata] = memory
        if not memory.atoms and tensor.dim() in (4, 5) and memory.origin is None:
            memory.axes = tensor.dim()
            memory.atoms = _as_map(tensor)
        return memory

    def _new(self) -> int:
        self._contents += 1
        return self._contents


def _as_map(x: Tensor) -> tuple[Atom, ...]:
    return tuple(Atom(stride, size, axis) for axis, (stride, size) in enumerate(zip(x.stride(), x.shape)))


def _is_whole(x: Tensor) -> bool:
    """Whether a view holds all of its memory, and not a crop."""
    return x.numel() * x.element_size() == x.untyped_storage().nbytes()


def _in(atom: Atom, x: Tensor, dim: int) -> bool:
    """Whether a dimension of a view runs over an axis."""
    stride, size = x.stride(dim), x.shape[dim]
    return size > 1 and 0 < stride <= atom.stride < stride * size


def _axes(atoms: tuple[Atom, ...], x: Tensor, dim: int) -> frozenset[int] | None:
    """The axes of the map that a dimension of a view of it runs over; None where it is but a part of one."""
    if not atoms:
        return frozenset({dim})
    over = [atom for atom in atoms if atom.size > 1 and _in(atom, x, dim)]
    if x.shape[dim] > 1 and prod(atom.size for atom in over) != x.shape[dim]:
        return None
    return frozenset(atom.axis for atom in over)


def _copied(atoms: tuple[Atom, ...], source: Tensor, out: Tensor) -> tuple[Atom, ...]:
    """The atoms of a copy, which lies in memory in a way of its own."""
    return _kept(atoms, source, out, [])


def _kept(atoms: tuple[Atom, ...], x: Tensor, out: Tensor, dims: list[int]) -> tuple[Atom, ...]:
    """The atoms of what is left when some dimensions are reduced."""
    left = [dim for dim in range(x.dim()) if dim not in dims]
    places = left if out.dim() == x.dim() else range(len(left))
    return tuple(
        Atom(atom.stride // x.stride(dim) * out.stride(place), atom.size, atom.axis)
        for dim, place in zip(left, places)
        if place < out.dim()
        for atom in atoms
        if _in(atom, x, dim)
    )


def _repeats(x: Tensor, dim: int) -> bool:
    return x.shape[dim] == 1 or x.stride(dim) == 0


def _followed(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout is not None and str(leaf.layout) == "torch.strided"


def _reduced(name: str, args: Any, out: Tensor) -> list[tuple[Tensor, list[int]]]:
    """What an operator reduces: its operands, with the dimensions that are gone from the result."""
    if name in _REDUCTIONS:
        place = _REDUCTIONS[name]
        dims = args[place] if len(args) > place else None
        if isinstance(dims, int) and not isinstance(dims, bool):
            dims = [dims]
        if not isinstance(dims, (list, tuple)):
            dims = []
        x = args[0]
        return [(x, [d % x.dim() for d in dims] or list(range(x.dim())))]
    if name in _POOLS:
        x = args[0]
        spatial = range(x.dim() - (3 if "3d" in name else 2), x.dim())
        whole = all(out.shape[d] == 1 for d in spatial)
        return [(x, [d for d in spatial if out.shape[d] == 1 and (whole or x.shape[d] > 1)])]
    if name in _MATMULS:
        a, b = args[_MATMULS[name]], args[_MATMULS[name] + 1]
        found = []
        # A product with one vector.
        if b.dim() == 1 or b.shape[-1] == 1:
            found.append((a, [a.dim() - 1]))
        if a.dim() >= 2 and a.shape[-2] == 1 and b.dim() >= 2:
            found.append((b, [b.dim() - 2]))
        return found
    return []
