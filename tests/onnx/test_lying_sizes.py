"""ONNX files whose sizes are not those of their bytes: refused before anything of that size is made."""

from __future__ import annotations

import pytest

import onnx
from tests.onnx.graphs import ACTS, GATES, LAYERS, POOLS, se_net
from tiledse.errors import TiledSEError
from tiledse.onnx import convert, find, load


def written(tmp_path, change):
    proto = se_net(POOLS[0], LAYERS[0], ACTS[0], GATES[0], opset=17)
    change(proto.graph)
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    ("key", "lie"), [("dims", [1] * 100), ("dims", [2**40]), ("data_type", 17), ("data_type", 2)]
)
def test_a_weight_of_another_shape_or_type_than_its_bytes(tmp_path, key, lie):
    def change(graph):
        weight = next(w for w in graph.initializer if len(w.dims) == 4)
        if key == "dims":
            weight.dims[:] = lie
        else:
            weight.data_type = lie

    with pytest.raises(TiledSEError, match=r"net\.onnx"):
        load(written(tmp_path, change))


def test_a_batch_that_no_memory_holds(tmp_path):
    def change(graph):
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**31

    model = load(written(tmp_path, change))
    with pytest.raises(TiledSEError, match="bytes of memory are free|expected|batch"):
        convert(model, find(model, (3, 10, 9)).with_tile("5xW"))


def test_weights_in_a_file_whose_name_is_longer_than_names_can_be(tmp_path):
    def change(graph):
        weight = graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", "x" * 10_000

    path = tmp_path / "net.onnx"
    proto = se_net(POOLS[0], LAYERS[0], ACTS[0], GATES[0], opset=17)
    change(proto.graph)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(TiledSEError, match="which is missing"):
        load(path)
