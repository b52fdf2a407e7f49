"""Small TensorFlow Lite networks, built with the schema package as it comes, and what they compute, in numpy."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as fb

KINDS = {np.dtype(k): getattr(fb.TensorType, v) for k, v in (
    ("f4", "FLOAT32"), ("i4", "INT32"), ("i1", "INT8"), ("u1", "UINT8"), ("f2", "FLOAT16"), ("i8", "INT64"),
)}  # fmt: skip


class Builder:
    """A graph that grows operator by operator; tensors are numbers."""

    def __init__(self) -> None:
        self.model = fb.ModelT(version=3, subgraphs=[], buffers=[fb.BufferT()], operatorCodes=[], metadata=[])
        self.graph = fb.SubGraphT(tensors=[], operators=[], inputs=[], outputs=[])
        self.model.subgraphs.append(self.graph)
        self.codes = {}

    def tensor(self, name, shape, dtype="f4", scale=None, zero=0, data=None, free=False):
        buffer = 0
        if data is not None:
            self.model.buffers.append(fb.BufferT(data=np.frombuffer(data.tobytes(), np.uint8)))
            buffer = len(self.model.buffers) - 1
        made = fb.TensorT(name=name.encode(), shape=list(shape), type=KINDS[np.dtype(dtype)], buffer=buffer)
        if free:
            made.shapeSignature = [-1, *shape[1:]] if free == "batch" else [-1, -1, -1, shape[3]]
        if scale is not None:
            made.quantization = fb.QuantizationParametersT(scale=[scale], zeroPoint=[zero])
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(self, name, array, scale=None, zero=0):
        return self.tensor(name, array.shape, array.dtype, scale, zero, np.ascontiguousarray(array))

    def op(self, kind, inputs, out, options=None, custom=None):
        key = kind, custom
        if key not in self.codes:
            number = getattr(fb.BuiltinOperator, kind)
            code = fb.OperatorCodeT(
                deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=1, customCode=custom
            )
            self.model.operatorCodes.append(code)
            self.codes[key] = len(self.codes)
        made = fb.OperatorT(opcodeIndex=self.codes[key], inputs=list(inputs), outputs=[out])
        if options is not None:
            made.builtinOptions = options
            made.builtinOptionsType = getattr(fb.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(made)
        return out

    def bytes(self) -> bytes:
        out = flatbuffers.Builder(1024)
        out.Finish(self.model.Pack(out), file_identifier=b"TFL3")
        return bytes(out.Output())


def conv_options(activation=0):
    return fb.Conv2DOptionsT(
        padding=1,
        strideH=1,
        strideW=1,
        dilationHFactor=1,
        dilationWFactor=1,
        fusedActivationFunction=activation,
    )


class Net:
    """image -> 1x1 convolution -> SE -> output, in float; its file, and its SE block's weights.

    pool: ``mean`` (without kept axes, then RESHAPE), ``keras`` (the same, its shape computed), ``pool``.
    dense: ``conv`` or ``fc``. gate: ``logistic``, ``hard`` (relu6(x + 3) / 6). custom: an operator nobody knows.
    """

    def __init__(
        self, height=12, width=5, channels=6, pool="pool", dense="conv", gate="logistic", free=None, custom=False,
        batch=1, half=False, other=False, seed=0, image=3,
    ) -> None:  # fmt: skip
        random = np.random.default_rng(seed)
        self.stem = random.standard_normal((channels, image)).astype("f4")
        self.w1 = 2 * random.standard_normal((4, channels)).astype("f4")
        self.b1 = random.standard_normal(4).astype("f4")
        self.w2 = 2 * random.standard_normal((channels, 4)).astype("f4")
        self.b2 = random.standard_normal(channels).astype("f4")
        self.gate = gate
        self.builder = b = Builder()
        shape = (batch, height, width, channels)
        shown = (1, 1, 1, image) if free == "size" else (batch, height, width, image)
        x = b.tensor("image", shown, free=free or False)
        b.graph.inputs = [x]
        weights = b.constant("stem/w", self.stem[:, None, None, :].astype("f2" if half else "f4"))
        if half:
            weights = b.op("DEQUANTIZE", [weights], b.tensor("stem/w32", self.stem[:, None, None, :].shape))
        zeros = b.constant("stem/b", np.zeros(channels, "f4"))
        self.map = b.op("CONV_2D", [x, weights, zeros], b.tensor("map", shape), conv_options())
        d = self._pooled(pool, batch, height, width, channels, dense)
        vector = len(b.graph.tensors[d].shape) == 2
        h = self._dense(d, self.w1, self.b1, dense, "hidden", vector, batch, activation=1)
        g = self._dense(h, self.w2, self.b2, dense, "logits", vector, batch)
        if custom:
            g = b.op("CUSTOM", [g], b.tensor("odd", b.graph.tensors[g].shape), custom="Odd")
        g = self._gated(g)
        if vector:
            to = b.constant("back", np.array([batch, 1, 1, channels], "i4"))
            g = b.op("RESHAPE", [g, to], b.tensor("gates", (batch, 1, 1, channels)))
        gated = b.op("ABS", [self.map], b.tensor("rectified", shape)) if other else self.map
        y = b.op("MUL", [gated, g], b.tensor("scaled", shape), fb.MulOptionsT())
        pads = b.constant("axes", np.array([1, 2], "i4"))
        out = b.op("MEAN", [y, pads], b.tensor("output", (batch, channels)), fb.ReducerOptionsT())
        b.graph.outputs = [y, out]

    def _pooled(self, pool, batch, height, width, channels, dense):
        b = self.builder
        if pool == "pool":
            options = fb.Pool2DOptionsT(
                padding=1, strideH=1, strideW=1, filterHeight=height, filterWidth=width
            )
            d = b.op("AVERAGE_POOL_2D", [self.map], b.tensor("pooled", (batch, 1, 1, channels)), options)
            if dense == "fc":
                to = b.constant("flat", np.array([batch, channels], "i4"))
                return b.op("RESHAPE", [d, to], b.tensor("vector", (batch, channels)))
            return d
        axes = b.constant("axes", np.array([1, 2], "i4"))
        d = b.op("MEAN", [self.map, axes], b.tensor("pooled", (batch, channels)), fb.ReducerOptionsT())
        if dense == "fc":
            return d
        if pool == "mean":
            to = b.constant("to", np.array([batch, 1, 1, channels], "i4"))
        else:
            shape = b.op("SHAPE", [d], b.tensor("shape", (2,), "i4"), fb.ShapeOptionsT(outType=2))
            zero, one = (b.constant(n, np.array([v], "i4")) for n, v in (("zero", 0), ("one", 1)))
            options = fb.StridedSliceOptionsT(shrinkAxisMask=1)
            n = b.op("STRIDED_SLICE", [shape, zero, one, one], b.tensor("n", (), "i4"), options)
            sides = [b.constant(f"side{i}", np.array(v, "i4")) for i, v in enumerate((1, 1, channels))]
            options = fb.PackOptionsT(valuesCount=4)
            to = b.op("PACK", [n, *sides], b.tensor("to", (4,), "i4"), options)
        return b.op("RESHAPE", [d, to], b.tensor("grid", (batch, 1, 1, channels)))

    def _dense(self, x, w, bias, dense, name, vector, batch, activation=0):
        b, out = self.builder, len(w)
        bias = b.constant(f"{name}/b", bias)
        if dense == "fc":
            weights = b.constant(f"{name}/w", w)
            options = fb.FullyConnectedOptionsT(fusedActivationFunction=activation)
            return b.op("FULLY_CONNECTED", [x, weights, bias], b.tensor(name, (batch, out)), options)
        weights = b.constant(f"{name}/w", w[:, None, None, :])
        return b.op(
            "CONV_2D", [x, weights, bias], b.tensor(name, (batch, 1, 1, out)), conv_options(activation)
        )

    def _gated(self, x):
        b = self.builder
        shape = b.graph.tensors[x].shape
        if self.gate == "logistic":
            return b.op("LOGISTIC", [x], b.tensor("gate", shape))
        three, sixth = b.constant("three", np.array(3, "f4")), b.constant("sixth", np.array(1 / 6, "f4"))
        options = fb.AddOptionsT(fusedActivationFunction=3)
        added = b.op("ADD", [x, three], b.tensor("added", shape), options)
        return b.op("MUL", [added, sixth], b.tensor("gate", shape), fb.MulOptionsT())

    def excite(self, z):
        hidden = np.maximum(self.w1 @ z + self.b1, 0)
        logits = self.w2 @ hidden + self.b2
        return np.clip(logits + 3, 0, 6) / 6 if self.gate == "hard" else 1 / (1 + np.exp(-logits))

    def write(self, path):
        path.write_bytes(self.builder.bytes())
        return path


def quantised(dtype="i1", mean_scale=None, height=12, width=5, channels=6, seed=0, scale=0.05) -> Builder:
    """uint8 or int8: image -> SE -> output. With ``mean_scale`` the mean is a MEAN with a scale of its own.

    Activations hold q - zero in steps; weights are per tensor. ``scale`` None leaves the map without one.
    """
    random = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    zero = 128 if dtype.kind == "u" else 0
    low = 0 if dtype.kind == "u" else -128
    b = Builder()
    x = b.tensor("image", (1, height, width, channels), dtype, scale, zero)
    b.graph.inputs = [x]
    if mean_scale is None:
        options = fb.Pool2DOptionsT(padding=1, strideH=1, strideW=1, filterHeight=height, filterWidth=width)
        d = b.tensor("pooled", (1, 1, 1, channels), dtype, scale, zero)
        b.op("AVERAGE_POOL_2D", [x], d, options)
        own = scale or 1.0
    else:
        axes = b.constant("axes", np.array([1, 2], "i4"))
        d = b.tensor("pooled", (1, 1, 1, channels), dtype, mean_scale, zero)
        b.op("MEAN", [x, axes], d, fb.ReducerOptionsT(keepDims=True))
        own = mean_scale
    for name, out, inputs, of, gives, activation in (
        ("hidden", 4, channels, own, 0.02, 1), ("logits", channels, 4, 0.02, 0.05, 0),
    ):  # fmt: skip
        w = random.integers(-90, 90, (out, 1, 1, inputs))
        weights = b.constant(f"{name}/w", (w + (128 if dtype.kind == "u" else 0)).astype(dtype), 0.02, zero)
        bias = b.constant(f"{name}/b", random.integers(-900, 900, out).astype("i4"), of * 0.02)
        least = low if activation else zero
        d = b.op("CONV_2D", [d, weights, bias], b.tensor(name, (1, 1, 1, out), dtype, gives, least),
                 conv_options(activation))  # fmt: skip
    g = b.op("LOGISTIC", [d], b.tensor("gate", (1, 1, 1, channels), dtype, 1 / 256, low))
    y = b.tensor("scaled", (1, height, width, channels), dtype, scale, zero)
    b.graph.outputs = [b.op("MUL", [x, g], y, fb.MulOptionsT())]
    return b
