"""Each exporter's spelling of SE is found, and converted exactly."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.pairs import pairs
from tiledse.onnx import convert, find, verify
from tiledse.onnx.model import from_proto
from tiledse.onnx.runner import session
from tiledse.tile import Tile

from .graphs import ACTS, GATES, LAYERS, POOLS, C, Net, R, excite, nhwc_net, se_net

SPELLINGS = [
    # Every other pair by default: each pool and each layer meets half of the others.
    *(
        (p, lay, "relu", "sigmoid")
        if (POOLS.index(p) + LAYERS.index(lay)) % 2
        else pytest.param((p, lay, "relu", "sigmoid"), marks=pytest.mark.slow)
        for p, lay in itertools.product(POOLS, LAYERS)
    ),
    *(("mean", lay, act, "sigmoid") for lay in ("conv", "gemm", "matmul") for act in ACTS[1:]),
    *(("gap", lay, "silu", gate) for lay in ("conv", "gemm", "matmul") for gate in GATES[1:]),
]


def check(proto, tile, size=(10, 9), divisor_tiles=False):
    model = from_proto(proto)
    plan = find(model, (3, *size))
    assert len(plan) == 1, plan.near_misses
    wanted = plan.with_tile(tile)
    converted = convert(model, wanted, divisor_tiles=divisor_tiles)
    found = find(converted, (3, *size))
    if not divisor_tiles:
        assert found == wanted
    report = verify(model, converted, found)
    assert report.identity < 2e-6
    assert report.worst_block < 2e-6
    assert find(convert(converted, found.with_tile("HxW")), (3, *size)) == plan
    return model, plan, converted


@pytest.mark.parametrize("spelling", SPELLINGS, ids="-".join)
def test_each_spelling_is_found_and_converted(spelling):
    _, plan, _ = check(se_net(*spelling), "4xW")
    block = plan.blocks[0]
    one = spelling[1] == "ese"
    assert (block.name, block.channels, block.height, block.width) == ("pool", C, 10, 9)
    assert block.reduced == (None if one else R)
    assert block.dialect == ("onnx.ESE" if one else "onnx.SE")
    assert block.excite_macs == (C * C + C if one else 2 * C * R + C + R)


@pytest.mark.parametrize(
    ("tile", "free", "spelling"),
    pairs(
        ["4xW", "Hx4", "4x3", "1x1", "HxW", "4xW:upper", "3xW:middle", "4xW:running", "50xW"],
        [(False, False, False), *((True, *f) for f in itertools.product((False, True), repeat=2))],
        [("gap", "conv"), ("mean_flat", "gemm")],
    ),
)
def test_each_tile_with_each_free_axis(tile, free, spelling):
    check(se_net(*spelling, free=free), tile)


SLIDING = (
    "1xW:running+3",
    "2xW:running+2",
    "1xW:running-1",
    "3xW:running-1",
    "1xW:window-2+2",
    "3xW:window-4-3",
)


@pytest.mark.parametrize(
    ("tile", "free", "spelling"),
    pairs(
        [*SLIDING, "1xW:running+9", "20xW:running-15"],
        [(True, False, False), (True, True, True)],
        [("mean", "conv", 10), ("gap", "gemm", 11)],
    ),
)
def test_sliding_strips(tile, free, spelling):
    pool, layers, rows = spelling
    check(se_net(pool, layers, free=free, size=(rows, 9)), tile, size=(rows, 9))


@pytest.mark.parametrize(
    ("opset", "tile", "free"),
    pairs([11, 13, 18], ["1xW:running+3", "2xW:window-3+1"], [(True, False, False), (True, True, True)]),
)
def test_sliding_strips_in_each_opset(opset, tile, free):
    check(se_net("mean", "matmul", opset=opset, free=free), tile)


@pytest.mark.parametrize("tile", ["1xW:running+3", "2xW:window-3+1"])
def test_sliding_strips_with_channels_last(tile):
    check(nhwc_net(1, free=False), tile)
    check(nhwc_net(0, free=True), tile)


def test_a_row_gate_is_broadcast():
    """One gate a row: nothing is repeated over rows, at whatever height."""
    for free in ((True, False, False), (True, True, True)):
        _, _, converted = check(se_net("mean", "conv", free=free), "1xW:running+3")
        assert not {"Resize", "AveragePool", "Expand", "Tile"} & operators(converted)


def test_a_matrix_that_is_no_tile_s_is_none():
    model = from_proto(se_net("gap", "conv"))
    converted = convert(model, find(model).with_tile("1xW:running+2"))
    matrix = next(node for node in converted.ir.graph if node.op_type == "MatMul").inputs[1]
    for change in (lambda a: a * 1.1, lambda a: a[:, ::-1], lambda a: np.where(a > 0.3, 0, a)):
        again = converted.clone()
        inner = next(node for node in again.ir.graph if node.op_type == "MatMul").inputs[1]
        inner.const_value = ir.tensor(
            np.ascontiguousarray(change(matrix.const_value.numpy())), name=inner.name
        )
        assert not len(find(from_proto(ir.to_proto(again.ir))))


@pytest.mark.parametrize(
    ("opset", "tile", "free"),
    pairs([11, 12, 13, 18, 19, 22], ["4x4", "4xW:running"], [(True, False, False), (True, True, True)]),
)
def test_each_opset(opset, tile, free):
    _, _, converted = check(se_net("mean", "matmul", opset=opset, free=free), tile)
    assert converted.opset == opset


@pytest.mark.parametrize(
    ("tile", "keep", "free"),
    pairs(
        ["4xW", "Hx4", "4x3", "HxW", "4xW:upper", "3xW:middle", "4xW:running", "1x1"], [0, 1], [False, True]
    ),
)
def test_channels_last(tile, keep, free):
    _, plan, _ = check(nhwc_net(keep, free=free), tile)
    assert plan.blocks[0].dialect == "onnx.SE.nhwc"


@pytest.mark.parametrize("tile", ["4xW", "3xW:running", "4x5", "3xW:middle", "4xW:upper", *SLIDING])
def test_one_file_serves_every_size(tile):
    """The free height is judged at sizes that the conversion never saw."""
    model = from_proto(se_net("mean", "conv", free=(True, True, True)))
    converted = convert(model, find(model, (3, 10, 9)).with_tile(tile))
    for size in ((1, 1), (2, 7), (8, 5), (13, 11), (4, 12)):
        plan = find(model, (3, *size)).with_tile(tile)
        report = verify(model, converted, plan)
        assert report.worst_block < 2e-6, size


def operators(model) -> set[str]:
    return {node.op_type for node in model.ir.graph}


@pytest.mark.parametrize("free", [(True, False, False), (True, True, True)])
@pytest.mark.parametrize("tile", ["4xW", "Hx4", "4x3", "4x4", "4xW:running"])
def test_pools_are_such_that_no_runtime_reads_them_in_its_own_way(tile, free):
    """No padding, and windows that fill their maps: count_include_pad and ceil_mode change nothing."""
    model = from_proto(se_net("mean", "conv", free=free))
    converted = convert(model, find(model, (3, 10, 9)).with_tile(tile))
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 10, 9)).astype(np.float32)}
    (expected,) = session(converted).run(None, x)
    pools = [node for node in converted.ir.graph if node.op_type == "AveragePool"]
    for node in pools:
        assert not {"pads", "count_include_pad", "ceil_mode", "auto_pad"} & set(node.attributes)
        node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 1)
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    assert pools
    assert np.array_equal(session(converted).run(None, x)[0], expected)


@pytest.mark.parametrize("tile", ["4xW:running", "5xW:running"])
def test_running_means_need_cumsum_only_where_the_height_is_free(tile):
    for free, sums in (
        ((True, False, False), False),
        ((True, False, True), False),
        ((True, True, True), True),
    ):
        _, _, converted = check(se_net("mean", "conv", free=free), tile)
        assert ("CumSum" in operators(converted)) == sums
        assert ("MatMul" in operators(converted)) != sums


def test_a_product_by_another_matrix_is_no_running_strip():
    model = from_proto(se_net("gap", "conv"))
    converted = convert(model, find(model).with_tile("4xW:running"))
    matrix = next(node for node in converted.ir.graph if node.op_type == "MatMul").inputs[1]
    matrix.const_value = ir.tensor(matrix.const_value.numpy() * 1.1, name=matrix.name)
    again = find(from_proto(ir.to_proto(converted.ir)))
    assert not any(tile.squeeze == "running" for tile in again.tiles)


def test_the_numbers_are_those_of_numpy_loops():
    """A reference that shares nothing with the library: ONNX Runtime's output against four loops."""
    proto = se_net("gap", "conv", size=(7, 5))
    model = from_proto(proto)
    converted = convert(model, find(model).with_tile("3xW"))
    x = np.random.default_rng(1).standard_normal((2, 3, 7, 5)).astype(np.float32)
    (got,) = session(converted).run(None, {"x": x})
    w = {t.name: np.array(__import__("onnx").numpy_helper.to_array(t)) for t in proto.graph.initializer}
    conv = torch.nn.functional.conv2d
    a = torch.relu(
        conv(torch.from_numpy(x), *(torch.from_numpy(w[k]) for k in ("w0", "w1")), padding=1)
    ).numpy()
    y = np.empty_like(a)
    for n in range(2):
        for strip in range(0, 7, 3):
            rows = a[n, :, strip : strip + 3]
            z = np.maximum(w["w2"][:, :, 0, 0] @ rows.mean((1, 2)) + w["w3"], 0)
            gate = 1 / (1 + np.exp(-(w["w4"][:, :, 0, 0] @ z + w["w5"])))
            y[n, :, strip : strip + 3] = rows * gate[:, None, None]
    expected = conv(torch.from_numpy(y), torch.from_numpy(w["w6"]), padding=1).numpy()
    assert np.abs(got - expected).max() < 1e-5


def test_half_precision():
    model = from_proto(se_net(dtype=np.float16))
    converted = convert(model, find(model).with_tile("4xW"))
    report = verify(model, converted, find(converted))
    assert report.worst_block < 2e-3


@pytest.mark.parametrize("free", [False, True])
def test_divisor_tiles_leave_plain_operators(free):
    proto = se_net("mean", "gemm", gate="hardsigmoid", free=(True, free, free))
    _, plan, converted = check(proto, "4xW", divisor_tiles=True)
    nodes = [n.op_type for n in converted.ir.graph]
    assert nodes == [
        "Conv",
        "Relu",
        "AveragePool",
        "Conv",
        "Relu",
        "Conv",
        "HardSigmoid",
        "Resize",
        "Mul",
        "Conv",
    ]
    assert find(converted).tiles == (Tile.parse("5xW"),)
    assert find(converted).input_size == plan.input_size


def _backwards(net, z):
    ends = net.ints(-(2**63))
    return net("Slice", z, net.ints(-1), ends, net.ints(1), net.ints(-1))


def _permuted(net, z):
    return net("Gather", z, net.ints(*reversed(range(C))), axis=1)


def _first_sample(net, z):
    return net("Slice", z, net.ints(0), net.ints(1), net.ints(0))


@pytest.mark.parametrize("shuffle", [_backwards, _permuted, _first_sample])
def test_descriptors_in_another_order_are_a_near_miss(shuffle):
    net = Net()
    x = net("Relu", net("Conv", "x", net.weight(C, 3, 1, 1)))
    z = shuffle(net, net("GlobalAveragePool", x, name="pool"))
    model = from_proto(
        net.model(net("Mul", x, excite(net, z, x, "conv", "relu", "sigmoid", True, (10, 9))), (2, 3, 10, 9))
    )
    plan = find(model, (3, 10, 9))
    assert not plan.blocks
    assert [miss.name for miss in plan.near_misses] == ["pool"]
    assert net.nodes[3].op_type in plan.near_misses[0].reason
