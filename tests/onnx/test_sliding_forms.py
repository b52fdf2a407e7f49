"""Sliding tiles by target: the ways in which means over rows are written, compared with numpy loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests import reference
from tests.onnx.forms import ends, excitation_of, run
from tests.onnx.graphs import nhwc_net, se_net
from tiledse import TiledSEError
from tiledse import onnx as tse_onnx
from tiledse.onnx.model import from_proto
from tiledse.targets import Target

SLIDING = (
    "1xW:running", "1xW:running+6", "1xW:running+17", "1xW:running-1", "7xW:running", "7xW:running+3", "4xW:running-4",
    "1xW:window-3+3", "1xW:window-20+2", "1xW:window-2-1", "2xW:window-2+1", "3xW:window-30+18",
)  # fmt: skip
# What is no window that moves by equal steps: the first gate sees its own rows, the others rows above only.
UNEVEN = {"1xW:running-1", "4xW:running-4", "1xW:window-2-1"}


@pytest.mark.parametrize("size", [(40, 9), (21, 5), (1, 3), (2, 1)])
@pytest.mark.parametrize("build", [se_net, nhwc_net])
def test_sliding_tiles_as_a_depthwise_convolution(size, build):
    """No transpose of the map's means and no product; numbers are those of loops, each row a block of its own."""
    proto = build(size=size)
    model = from_proto(proto)
    plain = Target("loops", static=True, batch=1)
    target = Target("npu", weighted=("DepthwiseConv", "MatMul"), static=True, batch=1)
    found = tse_onnx.find(model, (3, *size))
    x = np.random.default_rng(2).standard_normal((1, 3, *size)).astype(np.float32)
    for tile in SLIDING:
        plan = found.with_tile(tile)
        made = tse_onnx.convert_verified(model, plan, target=target, verify=tile == "1xW:running+6")
        again = tse_onnx.convert(model, plan, target=plain, verify=False)
        assert tse_onnx.find(again, (3, *size)).tiles == plan.tiles  # without this way it is read back
        if build is se_net:
            source, product = ends(model, size)
            source_map, got = run(made.model, (source, product), x)
            expected = reference.tiled_squeeze_excite(
                source_map.astype(np.float64), tile, excitation_of(proto)
            )
        else:
            (expected,), (got,) = (tse_onnx.session(m).run(None, {"x": x}) for m in (again, made.model))
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), tile
        ops = [node.op_type for node in made.model.ir.graph if node.name.startswith("pool/")]
        convolved = any(
            node.op_type == "Conv" and node.attributes["kernel_shape"].as_ints()[1] == 1
            and "group" in node.attributes for node in made.model.ir.graph if node.name.startswith("pool/")
        )  # fmt: skip
        if size[0] > 20:
            seen = tse_onnx.find(again, (3, *size)).tiles[0].sees_all(size[0])  # then the form is that of SE
            assert convolved == (tile not in UNEVEN and not seen), tile
            assert ("MatMul" in ops) == (tile in UNEVEN), tile
    only = replace(target, weighted=("DepthwiseConv",))
    if size[0] > 20:
        tse_onnx.convert(model, found.with_tile("1xW:running+6"), target=only)
        with pytest.raises(TiledSEError, match="only as a depthwise convolution, .*give another tile"):
            tse_onnx.convert(model, found.with_tile("1xW:running-1"), target=only)


def test_windows_of_rows_are_pools_with_stride_one_where_a_target_wants_them():
    size = (13, 9)
    proto = se_net(size=size)
    model = from_proto(proto)
    target = Target("npu", weighted=("AveragePool", "Conv"), static=True)
    source, product = ends(model, size)
    found = tse_onnx.find(model, (3, *size))
    x = np.random.default_rng(1).standard_normal((1, 3, *size)).astype(np.float32)
    for tile, operator in (
        ("1xW:window-3+2", "Pad"),
        ("1xW:window-3-1", "Conv"),
        ("1xW:running+2", "Transpose"),
    ):
        made = tse_onnx.convert(model, found.with_tile(tile), target=target)
        assert operator in tse_onnx.operators(made), tile
        source_map, got = run(made, (source, product), x)
        expected = reference.tiled_squeeze_excite(source_map.astype(np.float64), tile, excitation_of(proto))
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max(), tile
    only = Target("npu", weighted=("AveragePool",), static=True)
    with pytest.raises(TiledSEError, match="only windows of rows such as 1xW:window-3\\+3"):
        tse_onnx.convert(model, found.with_tile("1xW:running+2"), target=only)
