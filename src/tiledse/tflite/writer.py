"""Writer: puts new operators, tensors and constants into a graph of TensorFlow Lite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import Graph, Quantised, Shape
from .schema import names, schema

# The version of each operator that takes a type; those of float and uint8 are the first.
_VERSIONS = {"int8": 2, "int16": 4}
_SAME = {"RESHAPE"}  # one version for all types
_CONV_INT8 = 3  # the first with a scale for each channel


class Writer:
    """Writes operators before one place of a graph.

    Args:
        graph: The graph of a clone.
        at: How many operators stand before the new ones.
        prefix: What the names of new tensors begin with.
    """

    def __init__(self, graph: Graph, at: int, prefix: str) -> None:
        self.graph, self.at, self.prefix = graph, at, prefix

    def tensor(
        self, what: str, shape: Shape, kind: str, quantised: Quantised | None, buffer: int = 0, axis: int = 0
    ) -> int:
        """A new tensor, and its number."""
        code = next(n for n, name in names("TensorType").items() if name == kind)
        made = schema().TensorT(
            shape=np.array(shape, np.int32), type=code, buffer=buffer, name=f"{self.prefix}/{what}".encode(),
            hasRank=True,
        )  # fmt: skip
        if quantised is not None:
            made.quantization = _parameters(quantised, axis)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(
        self, what: str, array: np.ndarray, quantised: Quantised | None = None, axis: int = 0
    ) -> int:
        """A new constant, and its number."""
        kind = {"f4": "FLOAT32", "i4": "INT32", "i8": "INT64", "i1": "INT8", "i2": "INT16", "u1": "UINT8"}[
            array.dtype.str[1:]
        ]
        data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.graph.tree.buffers.append(schema().BufferT(data=data))
        return self.tensor(what, array.shape, kind, quantised, len(self.graph.tree.buffers) - 1, axis)

    def add(
        self, kind: str, inputs: Sequence[int], shape: Shape, options: Any = None, *, like: int | None = None,
        out: int | None = None, what: str | None = None, type_: str | None = None,
    ) -> int:  # fmt: skip
        """A new operator, and the tensor that it gives.

        Args:
            kind: Its name.
            inputs: Its inputs.
            shape: Of what it gives.
            options: Its options.
            like: The tensor whose scale and zero point that has; the first input, where it is left out.
            out: The tensor that it gives, where there is one already.
            what: The name of the new tensor; the operator's, where it is left out.
            type_: Its type, where it is not that of ``like``; it is not quantised then.
        """
        graph = self.graph
        like = inputs[0] if like is None else like
        if out is None:
            quantised = graph.quantised(like) if type_ is None else None
            out = self.tensor(what or kind.lower(), shape, type_ or graph.type(like), quantised)
        else:
            self.reshaped(out, shape)
        code = self._code(kind, inputs[0])
        op = schema().OperatorT(opcodeIndex=code, inputs=list(inputs), outputs=[out], builtinOptions=options)
        op.builtinOptionsType = _options_type(options)
        graph.operators.insert(self.at, op)
        self.at += 1
        return out

    def reshaped(self, tensor: int, shape: Shape, quantised: Quantised | None = None) -> None:
        """Give a tensor another shape, and another scale and zero point where they are given."""
        stored = self.graph.tensors[tensor]
        self.graph.known[tensor] = shape
        signature = stored.shapeSignature
        stored.shape = np.array(shape, np.int32)
        free = signature is not None and len(signature) and signature[0] < 0
        stored.shapeSignature = np.array([-1, *shape[1:]], np.int32) if free else None
        if quantised is not None:
            stored.quantization = _parameters(quantised, 0)

    def _code(self, kind: str, first: int) -> int:
        """The number of an operator's code, new where the file has none."""
        number = next(n for n, name in names("BuiltinOperator").items() if name == kind)
        version = _VERSIONS.get(str(self.graph.dtype(first)), 1)
        if kind in _SAME:
            version = 1
        elif kind == "CONV_2D" and version == 2:
            version = _CONV_INT8
        codes = self.graph.tree.operatorCodes
        for at, code in enumerate(codes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
                return at
        made = schema().OperatorCodeT(
            deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=version
        )
        codes.append(made)
        return len(codes) - 1


def _parameters(quantised: Quantised, axis: int) -> Any:
    return schema().QuantizationParametersT(
        scale=np.array(quantised.scale, np.float32), zeroPoint=np.array(quantised.zero, np.int64),
        quantizedDimension=axis,
    )  # fmt: skip


def _options_type(options: Any) -> int:
    if options is None:
        return 0
    name = type(options).__name__.removesuffix("T")
    return int(getattr(schema().BuiltinOptions, name))
