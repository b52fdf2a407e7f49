"""Graph: the main graph of a TensorFlow Lite network, as finder and converter look at it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .model import DTYPES, TfliteModel
from .schema import names

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Quantised:
    """How whole numbers stand for real ones: scale * (q - zero); one pair, or one for each channel."""

    scale: tuple[float, ...]
    zero: tuple[int, ...]

    def real(self, array: np.ndarray) -> np.ndarray:
        """Whole numbers as real ones, of one pair."""
        return ((array.astype(np.float64) - self.zero[0]) * self.scale[0]).astype(np.float32)

    def whole(self, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Real numbers as the nearest whole ones, of one pair."""
        limits = np.iinfo(dtype)
        found = np.rint(array.astype(np.float64) / self.scale[0]) + self.zero[0]
        return np.clip(found, limits.min, limits.max).astype(dtype)


class Graph:
    """The main graph of a network.

    Tensors are numbers, as in the file; operators are ``OperatorT``.
    """

    def __init__(self, model: TfliteModel) -> None:
        self.model, self.tree = model, model.tree
        self.main = model.tree.subgraphs[0]
        self.tensors: list[Any] = self.main.tensors
        self.operators: list[Any] = self.main.operators
        self.inputs = [int(i) for i in self.main.inputs]
        self.outputs = [int(i) for i in self.main.outputs]
        self.known: dict[int, Shape] = dict(enumerate(model.shapes or ()))

    @cached_property
    def producer(self) -> dict[int, Any]:
        """By tensor, the operator that gives it."""
        return {int(t): op for op in self.operators for t in op.outputs}

    @cached_property
    def users(self) -> dict[int, list[Any]]:
        """By tensor, the operators that take it, each once."""
        found: dict[int, list[Any]] = {}
        for op in self.operators:
            for tensor in dict.fromkeys(map(int, op.inputs if op.inputs is not None else ())):
                found.setdefault(tensor, []).append(op)
        return found

    def changed(self) -> None:
        """Look again who gives and takes what: operators were put in or taken out."""
        self.__dict__.pop("producer", None)
        self.__dict__.pop("users", None)

    def kind(self, op: Any) -> str:
        """The name of an operator, as the schema has it; ``custom NAME`` for one that is not in the schema."""
        code = self.tree.operatorCodes[op.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = names("BuiltinOperator").get(number, f"operator {number}")
        return f"custom {_text(code.customCode)}" if name == "CUSTOM" else name

    def place(self, op: Any) -> int:
        """The number of an operator."""
        return next(i for i, other in enumerate(self.operators) if other is op)

    def name(self, tensor: int) -> str:
        """The name of a tensor; ``tensor N`` where it has none, or shares it."""
        own = _text(self.tensors[tensor].name)
        own = own.partition(";")[0]  # converters join the names of all that became one operator
        return own if own and self._times[own] == 1 else f"tensor {tensor}"

    @cached_property
    def _times(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for tensor in self.tensors:
            own = _text(tensor.name).partition(";")[0]
            found[own] = found.get(own, 0) + 1
        return found

    def shape(self, tensor: int) -> Shape:
        """The shape of a tensor; -1 for a side that the file leaves open and nobody has run."""
        if tensor in self.known:
            return self.known[tensor]
        stored = self.tensors[tensor]
        shape = () if stored.shape is None else tuple(map(int, stored.shape))
        signature = () if stored.shapeSignature is None else tuple(map(int, stored.shapeSignature))
        if len(signature) != len(shape):
            return shape
        # A free first axis is the batch, of which the file shows one.
        return tuple(d if s >= 0 or i == 0 else -1 for i, (d, s) in enumerate(zip(shape, signature)))

    def type(self, tensor: int) -> str:
        """The type of a tensor, as the schema calls it."""
        return names("TensorType").get(self.tensors[tensor].type, "unknown")

    def dtype(self, tensor: int) -> np.dtype[Any]:
        """The type of a tensor, as numpy calls it."""
        return np.dtype(DTYPES.get(self.type(tensor), np.void))

    def quantised(self, tensor: int) -> Quantised | None:
        """How a tensor is quantised; None where it is not."""
        stored = self.tensors[tensor].quantization
        if stored is None or stored.scale is None or not len(stored.scale):
            return None
        zero = stored.zeroPoint if stored.zeroPoint is not None and len(stored.zeroPoint) else [0]
        return Quantised(tuple(map(float, stored.scale)), tuple(map(int, zero)))

    def constant(self, tensor: int) -> np.ndarray | None:
        """The numbers of a constant, as they are stored; half precision comes as single. None for what is none."""
        if tensor < 0:
            return None
        made = self.producer.get(tensor)
        if made is not None:
            return (
                self.constant(int(made.inputs[0])) if self.kind(made) in ("DEQUANTIZE", "DENSIFY") else None
            )
        data = self.tree.buffers[self.tensors[tensor].buffer].data
        if data is None or not len(data) or self.dtype(tensor).kind == "V" or tensor in self.inputs:
            return None if not self._empty(tensor) else np.zeros(0, np.int32)
        found = np.frombuffer(np.asarray(data).tobytes(), self.dtype(tensor)).reshape(self.shape(tensor))
        return found.astype(np.float32) if found.dtype == np.float16 else found

    def is_constant(self, tensor: int) -> bool:
        """Whether a tensor is the same for all images."""
        if tensor < 0:
            return True
        made = self.producer.get(tensor)
        if made is not None:
            return self.kind(made) in ("DEQUANTIZE", "DENSIFY") and self.is_constant(int(made.inputs[0]))
        return tensor not in self.inputs

    def _empty(self, tensor: int) -> bool:
        return 0 in self.shape(tensor)

    def leaf(self, tensor: int) -> int:
        """Where the numbers of a constant are stored."""
        made = self.producer.get(tensor)
        return tensor if made is None else self.leaf(int(made.inputs[0]))


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
