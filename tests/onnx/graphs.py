"""Small ONNX networks with one SE block, in each spelling that exporters have for its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import onnx
from onnx import helper, numpy_helper

C, R = 6, 4
POOLS = ("gap", "mean", "mean_last", "mean_flat", "average", "mean_twice")
LAYERS = (
    "conv",
    "gemm",
    "gemm_plain",
    "matmul",
    "matmul_left",
    "conv_add",
    "squeezed",
    "flatten",
    "view",
    "indexed",
    "ese",
)
ACTS = ("relu", "silu", "hardswish", "hardswish_spelt", "prelu", "bn")
GATES = ("sigmoid", "hardsigmoid", "clip_mul", "clip_div", "min_max", "expand")


class Net:
    """A graph that is written node by node."""

    def __init__(self, opset: int = 17, seed: int = 0, dtype: Any = np.float32) -> None:
        self.opset, self.dtype = opset, dtype
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, array: Any, name: str | None = None) -> str:
        name = name or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.const((self.random.standard_normal(shape) * 0.7).astype(self.dtype))

    def scalar(self, value: float) -> str:
        return self.const(np.array(value, self.dtype))

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def __call__(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [out], name=name or f"{op}_{len(self.nodes)}", **attributes)
        )
        return out

    def mean(self, x: str, axes: list[int], keep: int) -> str:
        if self.opset < 18:
            return self("ReduceMean", x, axes=axes, keepdims=keep, name="pool" if len(axes) > 1 else None)
        return self("ReduceMean", x, self.ints(*axes), keepdims=keep, name="pool" if len(axes) > 1 else None)

    def squeeze_axes(self, op: str, x: str, axes: list[int]) -> str:
        return self(op, x, axes=axes) if self.opset < 13 else self(op, x, self.ints(*axes))

    def model(
        self, output: str, shape: tuple[Any, ...], extra_outputs: tuple[str, ...] = ()
    ) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        outs = [helper.make_tensor_value_info(o, kind, [None] * 4) for o in (output, *extra_outputs)]
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", kind, shape)], outs, self.weights
        )
        ir = 6 if self.opset < 13 else 8 if self.opset < 19 else 10
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir)
        onnx.checker.check_model(model)
        return model


def excite(
    net: Net, z: str, x: str, layers: str, act: str, gate: str, rank4: bool, size: tuple[int, int]
) -> str:
    """Descriptors to gates of 4 axes."""
    one = layers == "ese"
    kind = "conv" if one else layers
    if kind == "view":  # x.view(b, c): the shape is computed in the graph
        shape = net("Shape", x)
        batch = net("Gather", shape, net.ints(0))
        z = net("Reshape", z, net("Concat", batch, net.ints(-1), axis=0))
    elif kind in ("gemm", "gemm_plain", "matmul", "matmul_left", "flatten") and rank4:
        z = net("Flatten", z) if kind in ("flatten", "gemm") else net.squeeze_axes("Squeeze", z, [2, 3])
    elif kind == "indexed" and rank4:  # z[:, :, 0, 0]
        z = net("Gather", net("Gather", z, net.ints(0), axis=3), net.const(np.int64(0)), axis=2)
        z = net.squeeze_axes("Squeeze", z, [2])
    elif kind == "squeezed" and rank4:
        z = net.squeeze_axes("Unsqueeze", net.squeeze_axes("Squeeze", z, [2, 3]), [2, 3])
    elif kind in ("conv", "conv_add", "squeezed") and not rank4:
        z = net.squeeze_axes("Unsqueeze", z, [2, 3])
    if kind == "matmul_left":
        z = net.squeeze_axes("Unsqueeze", z, [2])  # (N, C, 1): the weights stand on the left

    def dense(v: str, i: int, o: int) -> str:
        if kind in ("conv", "squeezed"):
            return net("Conv", v, net.weight(o, i, 1, 1), net.weight(o))
        if kind == "conv_add":  # paddle: a bias of its own, through an Identity
            return net("Identity", net("Add", net("Conv", v, net.weight(o, i, 1, 1)), net.weight(1, o, 1, 1)))
        if kind in ("gemm", "flatten", "view", "indexed"):
            return net("Gemm", v, net.weight(o, i), net.weight(o), transB=1)
        if kind == "gemm_plain":
            return net("Gemm", v, net.weight(i, o), net.weight(1, o), alpha=0.5, beta=2.0)
        if kind == "matmul_left":
            return net("Add", net("MatMul", net.weight(o, i), v), net.weight(o, 1))
        return net("Add", net("MatMul", v, net.weight(i, o)), net.weight(o))

    def activate(v: str, channels: int) -> str:
        if act == "relu":
            return net("Relu", v)
        if act == "silu":
            return net("Mul", v, net("Sigmoid", v))
        if act == "hardswish":
            return (
                net("HardSwish", v)
                if net.opset >= 14
                else net("Mul", v, net("HardSigmoid", v, alpha=1 / 6, beta=0.5))
            )
        if act == "hardswish_spelt":
            clip = net("Clip", net("Add", v, net.scalar(3)), net.scalar(0), net.scalar(6))
            return net("Div", net("Mul", v, clip), net.scalar(6))
        if act == "prelu":
            return net("PRelu", v, net.scalar(0.1))
        vectors = [
            net.const(np.abs(net.random.standard_normal(channels)).astype(net.dtype)) for _ in range(4)
        ]
        return net("BatchNormalization", v, *vectors)

    def gates(v: str) -> str:
        if gate in ("sigmoid", "expand"):
            return net("Sigmoid", v)
        if gate == "hardsigmoid":
            return net("HardSigmoid", v, alpha=1 / 6, beta=0.5)
        three = net("Add", net.scalar(3), v)
        if gate == "min_max":
            return net("Div", net("Min", net("Max", three, net.scalar(0)), net.scalar(6)), net.scalar(6))
        clip = net("Clip", three, net.scalar(0), net.scalar(6))
        return net("Mul", net.scalar(0.1666), clip) if gate == "clip_mul" else net("Div", clip, net.scalar(6))

    z = gates(dense(z, C, C)) if one else gates(dense(activate(dense(z, C, R), R), R, C))
    if kind == "matmul_left":
        z = net.squeeze_axes("Unsqueeze", z, [3])
    elif kind in ("gemm", "gemm_plain", "matmul", "flatten"):
        z = net.squeeze_axes("Unsqueeze", z, [2, 3])
    elif kind == "indexed":  # g[:, :, None, None], its colons written out
        for axis in (0, 1):
            whole = [net.ints(0), net.ints(2**63 - 1), net.ints(axis)]
            z = (
                net("Slice", z, *whole)
                if net.opset > 9
                else net("Slice", z, starts=[0], ends=[2**63 - 1], axes=[axis])
            )
        z = net.squeeze_axes("Unsqueeze", net.squeeze_axes("Unsqueeze", z, [2]), [3])
    elif kind == "view":
        batch = net("Gather", net("Shape", x), net.ints(0))
        z = net("Reshape", z, net("Concat", batch, net.ints(C, 1, 1), axis=0))
    return net("Expand", z, net("Shape", x)) if gate == "expand" else z


def se_net(
    pool: str = "gap", layers: str = "conv", act: str = "relu", gate: str = "sigmoid", *, opset: int = 17,
    size: tuple[int, int] = (10, 9), free: tuple[bool, bool, bool] = (True, False, False), seed: int = 0,
    swap: bool = False, dtype: Any = np.float32,
) -> onnx.ModelProto:  # fmt: skip
    """Conv, SE block, Conv; ``free``: whether batch, height and width are left free."""
    net = Net(opset, seed, dtype)
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 3, 3), net.weight(C), pads=[1, 1, 1, 1]))
    keep = pool != "mean_flat"
    if pool == "gap":
        z = net("GlobalAveragePool", x, name="pool")
    elif pool == "average":
        z = net("AveragePool", x, kernel_shape=size, name="pool")
    elif pool == "mean_twice":
        z = net.mean(net.mean(x, [3], 1), [2], 1)
        net.nodes[-1].name = "pool"
    else:
        z = net.mean(x, [-1, -2] if pool == "mean_last" else [2, 3], int(keep))
    g = excite(net, z, x, layers, act, gate, keep, size)
    y = net("Mul", g, x) if swap else net("Mul", x, g)
    y = net("Conv", y, net.weight(5, C, 3, 3), pads=[1, 1, 1, 1])
    n, h, w = ("N" if free[0] else 2, "H" if free[1] else size[0], "W" if free[2] else size[1])
    return net.model(y, (n, 3, h, w))


def nhwc_net(
    keep: int = 1, opset: int = 17, size: tuple[int, int] = (10, 9), free: bool = False
) -> onnx.ModelProto:
    """As tf2onnx leaves it: the map has its channels last, the excitation's convolutions theirs second."""
    net = Net(opset)
    x = net("Transpose", net("Conv", "x", net.weight(C, 3, 1, 1)), perm=[0, 2, 3, 1])
    x = net("Relu", x)
    z = net.mean(x, [1, 2], keep)
    z = net("Transpose", z, perm=[0, 3, 1, 2]) if keep else net("Reshape", z, net.ints(-1, C, 1, 1))
    z = net("Relu", net("Conv", z, net.weight(R, C, 1, 1), net.weight(R)))
    z = net("Conv", z, net.weight(C, R, 1, 1), net.weight(C))
    g = net("Sigmoid", net("Transpose", z, perm=[0, 2, 3, 1]))
    y = net("Transpose", net("Mul", g, x), perm=[0, 3, 1, 2])
    shape = ("N", 3, "H", "W") if free else ("N", 3, *size)
    return net.model(y, shape)


Change = Callable[[Net, str, str], str]
