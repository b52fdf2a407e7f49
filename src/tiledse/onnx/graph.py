"""Graph: a part of an ONNX network in ONNX Runtime, by the names of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import onnx

from ..errors import TiledSEError, first_line


class Graph:
    """A graph in ONNX Runtime, by names of inputs and outputs."""

    def __init__(self, proto: onnx.ModelProto, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has many errors without a common class
            raise TiledSEError(
                f"ONNX Runtime does not take a part of the network: {first_line(error)}"
            ) from error
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.types = {value.name: value.type for value in self.session.get_outputs()}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs, by name.

        Raises:
            TiledSEError: ONNX Runtime fails on these shapes.
        """
        try:
            return dict(zip(self.outputs, self.session.run(None, feeds)))
        except Exception as error:
            shapes = ", ".join(str(tuple(array.shape)) for array in feeds.values())
            raise TiledSEError(f"the network fails on {shapes}: {first_line(error, 140)}") from error


def with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The same network with more outputs; their types are left to ONNX Runtime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return copy
