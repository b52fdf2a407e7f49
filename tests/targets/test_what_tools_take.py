"""Forms that tools of others were seen to take badly are not written for them."""

from __future__ import annotations

import pytest

import onnx
import tiledse as ts
from tests.onnx.graphs import se_net

TILES = ("HxW:two-step", "7xW", "8xW", "7xW:running", "1xW:running+6", "1xW:window-6+6", "Hx8", "7xW:upper")


def written(tmp_path, target, tile, size=(56, 56)):
    source, out = tmp_path / "net.onnx", tmp_path / "tse.onnx"
    onnx.save(se_net(opset=18, size=size), source)
    network = ts.open(str(source))
    ts.write(network, network.se.with_tile(tile), out, ts.Form(target=ts.targets.load(target)))
    return onnx.load(out)


@pytest.mark.parametrize("tile", TILES)
def test_no_mean_over_one_axis_for_ncnn(tmp_path, tile):
    # pnnx 20261020 reads such a mean (opset 18) as one over no axis: ncnn was 0.02 off, in silence.
    proto = written(tmp_path, "ncnn", tile)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    means = [node for node in proto.graph.node if node.op_type == "ReduceMean"]
    assert all(constants[node.input[1]].size == 2 for node in means)
    assert means or any("Pool" in node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("tile", TILES[:-1])  # rows that gate the whole map are one global pool
def test_pools_of_seven_at_the_most_for_rockchip(tmp_path, tile):
    # rknn-toolkit2 cuts wider ones into slices that overlap.
    proto = written(tmp_path, "rockchip", tile)
    kernels = [
        side
        for node in proto.graph.node
        for attribute in node.attribute
        if node.op_type == "AveragePool" and attribute.name == "kernel_shape"
        for side in attribute.ints
    ]
    assert kernels
    assert max(kernels) <= 7


def test_a_global_pool_stays_for_rockchip(tmp_path):
    proto = written(tmp_path, "rockchip", "HxW")
    assert not [node for node in proto.graph.node if node.op_type == "AveragePool"]
