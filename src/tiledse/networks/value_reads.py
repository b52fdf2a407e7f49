"""See whether Python looks at the numbers of a tensor, or of what was made of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What gives Python a number, or a shape that depends on numbers.
_READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique2", "_unique2"}


class ValueReads(TorchDispatchMode):
    """Notes whether what runs inside it reads numbers of a tensor, as ``if x.sum() > 0`` does.

    Example:
        >>> import torch
        >>> x, other = torch.ones(3), torch.ones(3)
        >>> with ValueReads().of(x) as reads:
        ...     _ = bool(other.sum() > 0)
        >>> reads.found
        False
        >>> with reads:
        ...     _ = bool((x * 2).sum() > 0)
        >>> reads.found
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self._made: dict[int, StorageWeakRef] = {}

    def of(self, tensor: Tensor) -> ValueReads:
        """Watch this tensor, and what is made of it."""
        self._watch(tensor)
        return self

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._made[storage._cdata] = StorageWeakRef(storage)

    def _watched(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        watched = any(self._watched(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        out = func(*args, **kwargs)
        if watched:
            self.found |= str(func._overloadpacket).rpartition(".")[2] in _READS
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._watch(leaf)
        return out
