"""Whatever pools a map and gates it with that is an SE block, or a near miss with its reason: never silence."""

from __future__ import annotations

import numpy as np
import pytest

from onnx import helper
from tiledse.onnx import convert, find, verify
from tiledse.onnx.model import from_proto

from .graphs import C, Net, excite

H, W = 10, 9


def network(pool, layers="conv", free=False):
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    z = pool(net, x)
    y = net("Mul", x, excite(net, z, x, layers, "relu", "sigmoid", True, (H, W)))
    return from_proto(net.model(y, ("N", 3, "H", "W") if free else ("N", 3, H, W)))


def to_map(net, z):
    return net("Reshape", z, net.ints(-1, C, 1, 1))


def flattened(net, x):
    flat = net("Reshape", x, net.ints(0, C, -1))
    return to_map(net, net("ReduceMean", flat, axes=[2], keepdims=0, name="pool"))


def flattened_kept(net, x):
    flat = net("Reshape", x, net.ints(0, C, -1))
    return to_map(net, net("ReduceMean", flat, axes=[-1], keepdims=1, name="pool"))


def columns_then_rows(net, x):
    return to_map(
        net, net("ReduceMean", net("ReduceMean", x, axes=[3], keepdims=0), axes=[2], keepdims=0, name="pool")
    )


def rows_then_columns(net, x):
    return to_map(
        net, net("ReduceMean", net("ReduceMean", x, axes=[2], keepdims=0), axes=[2], keepdims=0, name="pool")
    )


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("layers", ["conv", "gemm"])
@pytest.mark.parametrize("pool", [flattened, flattened_kept, columns_then_rows, rows_then_columns])
def test_means_of_three_axes_are_squeezes(pool, layers, free):
    model = network(pool, layers, free)
    plan = find(model, (3, H, W))
    assert [b.name for b in plan.blocks] == ["pool"], plan.near_misses
    for tile in ("4xW", "4xW:running", "3x4"):
        converted = convert(model, plan.with_tile(tile))
        assert find(converted, (3, H, W)) == plan.with_tile(tile)
        assert verify(model, converted, plan.with_tile(tile)).worst_block < 2e-6


def depthwise(net, x):
    weight = net.const(np.full((C, 1, H, W), 1 / (H * W), np.float32))
    return net("Conv", x, weight, group=C, name="pool")


def product(net, x):
    flat = net("Reshape", x, net.ints(0, C, -1))
    return to_map(
        net, net("MatMul", flat, net.const(np.full((H * W, 1), 1 / (H * W), np.float32)), name="pool")
    )


def summed(net, x):
    return net("Div", net("ReduceSum", x, net.ints(2, 3), keepdims=1, name="pool"), net.scalar(H * W))


def deviation(net, x):
    far = net("Sub", x, net("ReduceMean", x, axes=[2, 3], name="mean"))
    return net("Sqrt", net("ReduceMean", net("Mul", far, far), axes=[2, 3], name="pool"))


def summed_flat(net, x):
    flat = net("Reshape", x, net.ints(0, C, -1))
    total = net("ReduceSum", flat, net.ints(2), keepdims=0, name="pool")
    return to_map(net, net("Div", total, net.scalar(H * W)))


def window_beyond_the_map(net, x):
    return net(
        "AveragePool", x, kernel_shape=[H + 2, W + 2], pads=[1, 1, 1, 1], count_include_pad=0, name="pool"
    )


def window_that_counts_the_frame(net, x):
    return net(
        "AveragePool", x, kernel_shape=[H + 2, W + 2], pads=[1, 1, 1, 1], count_include_pad=1, name="pool"
    )


@pytest.mark.parametrize(
    "pool",
    [
        depthwise, product, summed, deviation, summed_flat, window_beyond_the_map, window_that_counts_the_frame,
    ],
)  # fmt: skip
def test_other_ways_to_pool_are_near_misses(pool):
    plan = find(network(pool))
    assert len(plan) == 0
    reasons = {miss.name: miss.reason for miss in plan.near_misses}
    assert "pool" in reasons
    assert all(reasons.values())


def test_a_pool_as_large_as_the_map_at_one_size_only():
    def pool(net, x):
        return net("AveragePool", x, kernel_shape=[H, W], name="pool")

    assert len(find(network(pool))) == 1
    plan = find(network(pool, free=True), (3, H, W))
    assert len(plan) == 0
    assert "at this input size only" in plan.near_misses[0].reason


def test_true_reasons_for_what_runtimes_write():
    def dynamic(net, x):
        z = net("GlobalAveragePool", x, name="pool")
        net("DynamicQuantizeLinear", z)
        whole = net.nodes[-1]
        whole.output.extend(["scale", "zero"])
        return net("DequantizeLinear", whole.output[0], "scale", "zero")

    (miss,) = find(network(dynamic)).near_misses
    assert "quantised anew at each call" in miss.reason

    def fused(net, x):
        z = net("FusedConv", net("GlobalAveragePool", x, name="pool"), net.weight(C, C, 1, 1))
        net.nodes[-1].domain = "com.microsoft"
        return z

    model = network_with_domain(fused)
    assert any("take the file from before" in miss.reason for miss in find(model).near_misses)


def network_with_domain(pool):
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    y = net("Mul", x, net("Sigmoid", pool(net, x)))
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("x", 1, ["N", 3, H, W])],
        [helper.make_tensor_value_info(y, 1, [None] * 4)],
        net.weights,
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return from_proto(helper.make_model(graph, opset_imports=sets, ir_version=8))


@pytest.mark.parametrize("pooled", ["ReduceMean", "Einsum"])
def test_products_and_sums_by_einsum_are_near_misses(pooled):
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    if pooled == "ReduceMean":
        z = net("ReduceMean", x, axes=[2, 3], keepdims=0, name="pool")
    else:
        z = net("Div", net("Einsum", x, equation="nchw->nc", name="pool"), net.scalar(H * W))
    gate = net("Sigmoid", net("Gemm", z, net.weight(C, C), transB=1))
    model = from_proto(net.model(net("Einsum", x, gate, equation="nchw,nc->nchw"), (1, 3, H, W)))
    (miss,) = find(model, (3, H, W)).near_misses
    assert (miss.name, miss.gates) == ("pool", True)
    assert "Einsum" in miss.reason
