"""A block in a file: where it stands, its excitation as numpy, and what it is given and gives."""

from __future__ import annotations

import numpy as np

import onnx
from tests import reference
from tiledse.onnx import finder


def excitation_of(proto):
    """The excitation of ``se_net`` as numpy."""
    arrays = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    layers = [
        [arrays[name] for name in node.input[1:]]
        for node in proto.graph.node
        if node.op_type == "Conv" and arrays[node.input[1]].shape[2:] == (1, 1)
    ]
    (w1, b1), (w2, b2) = [(w[:, :, 0, 0], b) for w, b in layers]
    return reference.two_layers(w1, b1, w2, b2)


def ends(model, size):
    (place,) = finder.locate(model, (3, *size)).places
    return place.squeeze.source.name, place.product.outputs[0].name


def run(model, names, x):
    proto = model.to_proto()
    have = {v.name for v in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(names), {"x": x})
