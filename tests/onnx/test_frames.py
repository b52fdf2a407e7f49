"""ONNX files whose blocks are gated by the previous frame: numbers, states as inputs and outputs, what is refused."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import tiledse as ts
from tests.networks.test_frames import SIZE, TILES, Net, excitation
from tests.onnx.graphs import nhwc_net, se_net
from tests.reference import frames_gated_by_the_last
from tiledse.onnx import frames as frames_module
from tiledse.onnx import states as states_module
from tiledse.onnx.model import OnnxModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def net():
    return Net().eval()


@pytest.fixture(scope="module")
def model(net):
    return ts.onnx.export(net, ts.find(net, SIZE))


@pytest.fixture(scope="module")
def plan(model):
    return ts.onnx.find(model)


def states_of(made):
    return json.loads(made.ir.metadata_props["tiledse.states"])["states"]


@pytest.mark.parametrize("tile", TILES)
def test_frames_by_the_file_alone_are_those_of_numpy_loops(net, model, plan, tile):
    made = ts.onnx.convert(model, plan.with_tile(tile, plan.blocks[0].name))
    tapped = made.clone()
    values = ir.convenience.create_value_mapping(tapped.ir.graph)
    (place,) = [p for p in _places(made) if p.squeeze.state is not None] or _places(made)[:1]
    ends = [place.squeeze.source.name, place.product.outputs[0].name]
    tapped.ir.graph.outputs.extend(values[name] for name in ends)
    session = ort.InferenceSession(tapped.to_proto().SerializeToString(), providers=["CPUExecutionProvider"])
    generator, kept = np.random.default_rng(0), {}
    states = states_of(made) if "tiledse.states" in made.ir.metadata_props else []
    for state in states:
        assert state["start"] == "nan"
        kept[state["input"]] = np.full((2, *state["shape"]), np.nan, np.float32)
    maps, products = [], []
    for _ in range(4):
        image = generator.standard_normal((2, *SIZE)).astype(np.float32)
        names = [*ends, *(s["output"] for s in states)]
        got = dict(zip(names, session.run(names, {session.get_inputs()[0].name: image, **kept})))
        kept = {s["input"]: got[s["output"]] for s in states}
        maps.append(got[ends[0]].astype(np.float64))
        products.append(got[ends[1]])
    for stream in range(2):
        wanted = frames_gated_by_the_last([x[stream] for x in maps], tile, excitation(net.one))
        for got, expected in zip(products, wanted, strict=True):
            np.testing.assert_allclose(got[stream], expected, rtol=1e-4, atol=1e-5)


def _places(made):
    from tiledse.onnx.finder import locate

    return locate(made).places


@pytest.mark.parametrize("tile", ["HxW:previous", "2xW:previous+1"])
def test_what_is_converted_is_read_back_and_taken_back(model, plan, tile):
    wanted = plan.with_tile(tile)
    made = ts.onnx.convert(model, wanted)
    found = ts.onnx.find(made)
    assert found == wanted
    assert found.network == plan.network
    assert ts.onnx.weights_of(made) == ts.onnx.weights_of(model)
    assert [s["block"] for s in states_of(made)] == [b.name for b in plan.blocks]
    other = ts.onnx.convert(made, found.with_tile("HxW:previous", plan.blocks[0].name))
    assert len(states_of(other)) == 2
    back = ts.onnx.convert(made, plan)
    for part in ("inputs", "outputs"):
        assert [v.name for v in getattr(back.ir.graph, part)] == [
            v.name for v in getattr(model.ir.graph, part)
        ]
    assert "tiledse.states" not in back.ir.metadata_props
    x = torch.randn(1, *SIZE)
    torch.testing.assert_close(ts.onnx.module(back)(x), ts.onnx.module(model)(x))


def test_a_sliding_file_has_the_weights_and_counts_of_its_se_network(model, plan):
    made = ts.onnx.convert(model, plan.with_tile("1xW:running+2"))
    assert ts.onnx.weights_of(made) == ts.onnx.weights_of(model)
    assert ts.onnx.find(made).network == plan.network


def test_the_module_keeps_states_and_begins_again(net, model, plan):
    video = ts.onnx.module(ts.onnx.convert(model, plan.with_tile("1xW:previous")))
    same = ts.convert(net, ts.find(net, SIZE).with_tile("1xW:previous"))
    x = torch.randn(4, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for frame in x[:2]:
            torch.testing.assert_close(video(frame), same(frame), rtol=1e-4, atol=1e-5)
        video.reset_frames([1])
        ts.reset_frames(same, [1])
        torch.testing.assert_close(video(x[2]), same(x[2]), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ts.TiledSEError, match="a frame of 1 streams after one of 2; a stream keeps its batch"
    ):
        video(x[0, :1])
    with pytest.raises(ts.TiledSEError, match="numbers of streams of 0 to 1, got 2"):
        video.reset_frames([2])
    video.reset_frames()
    video(x[0, :1])
    with pytest.raises(ts.TiledSEError, match="keeps no state from frame to frame"):
        ts.onnx.module(model).reset_frames()


def free_file(net, folder):
    """The network as a file that leaves batch, height and width free."""
    path = folder / "free.onnx"
    free = {"x": {0: "N", 2: "H", 3: "W"}}
    torch.onnx.export(net, (torch.zeros(2, *SIZE),), path, input_names=["x"], dynamic_axes=free, dynamo=False)
    return ts.onnx.load(path)


def test_one_file_takes_frames_of_any_size(net, tmp_path):
    """Each size is a stream of its own; a state has no rows, and a first frame counts them."""
    model = free_file(net, tmp_path)
    wanted = ts.onnx.find(model, SIZE).with_tile("HxW:previous")
    made = ts.onnx.convert_verified(model, wanted)
    assert 0 < made.proof.worst_block < 1e-5
    assert [s[2:] for s in made.proof.sizes] == [(10, 6), (42, 38)]
    path = tmp_path / "video.onnx"
    ts.onnx.save(made.model, path)
    found = ts.onnx.find(ts.onnx.load(path), SIZE)
    assert (found, found.near_misses) == (wanted, ())
    file = ort.InferenceSession(path)
    assert [list(value.shape) for value in file.get_inputs()] == [["N", 3, "H", "W"], ["N", 12], ["N", 8]]
    video, same = ts.onnx.module(path), ts.convert(net, ts.find(net, SIZE).with_tile("HxW:previous"))
    generator = torch.Generator().manual_seed(0)
    for streams, height, width in ((2, 10, 6), (3, 1, 4), (1, 7, 5), (2, 61, 16)):
        video.reset_frames()
        ts.reset_frames(same)
        for number in range(4):
            frame = torch.randn(streams, 3, height, width, generator=generator)
            if number == 2:
                video.reset_frames([streams - 1])
                ts.reset_frames(same, [streams - 1])
            with torch.no_grad():
                torch.testing.assert_close(video(frame), same(frame), rtol=1e-4, atol=1e-5)
    with pytest.raises(ts.TiledSEError, match=r"a frame of \(2, 3, 9, 16\) after one of \(2, 3, 61, 16\)"):
        video(torch.zeros(2, 3, 9, 16))
    back = ts.onnx.convert(ts.onnx.load(path), ts.onnx.find(model, SIZE))
    assert [v.name for v in back.ir.graph.inputs] == ["x"]
    x = torch.randn(1, 3, 13, 9, generator=generator)
    torch.testing.assert_close(ts.onnx.module(back)(x), ts.onnx.module(model)(x))


@pytest.mark.parametrize("height", ["fixed", "free"])
def test_a_graph_that_computes_something_else_is_no_block(net, tmp_path, height):
    model = free_file(net, tmp_path) if height == "free" else ts.onnx.export(net, ts.find(net, SIZE))
    plan = ts.onnx.find(model, SIZE)
    made = ts.onnx.convert(model, plan.with_tile("HxW:previous"))
    assert len(ts.onnx.find(made, SIZE)) == 2

    def reasons(change):
        other = made.clone()
        change(other.ir)
        found = ts.onnx.find(other, SIZE)
        assert not len(found)
        return {miss.reason for miss in found.near_misses}

    def this_frame(graph):  # the new mean in place of the last frame's
        for name, value in graph.graph.initializers.items():
            if "last_frame" in name:
                value.const_value = ir.tensor(np.array([1]), name=name)

    def says(tile):
        def change(graph):
            tiles = json.loads(graph.metadata_props["tiledse.tiles"])
            lies = {name: [tile, pool] for name, (_, pool) in tiles.items()}
            graph.metadata_props["tiledse.tiles"] = json.dumps(lies)

        return change

    assert "it says that its tile is HxW:previous, and computes something else" in reasons(this_frame)
    for tile in ("2xW:previous", "1xW:previous"):
        assert f"it says that its tile is {tile}, and computes something else" in reasons(says(tile))


def test_strips_fix_the_size(net, tmp_path):
    model = free_file(net, tmp_path)
    plan = ts.onnx.find(model, SIZE)
    mixed = plan.with_tile("HxW:previous").with_tile("1xW:previous-1", plan.blocks[1].name)
    made = ts.onnx.convert(model, mixed)
    assert list(made.ir.graph.inputs[0].shape)[1:] == [3, 10, 6]
    assert ts.onnx.find(made) == mixed


@pytest.mark.parametrize("tile", ["HxW:previous", "2xW:previous+1"])
@pytest.mark.parametrize(("streams", "states"), [(2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_states_of_another_batch_are_no_states_of_these_streams(model, plan, tile, streams, states, value):
    """One state would be repeated for all streams, in silence."""
    made = ts.onnx.convert(model, plan.with_tile(tile))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(made.to_proto().SerializeToString(), options)
    kept = {s["input"]: np.full((states, *s["shape"]), value, np.float32) for s in states_of(made)}
    with pytest.raises(Exception, match="Concat|concat"):
        session.run(None, {session.get_inputs()[0].name: np.zeros((streams, *SIZE), np.float32), **kept})


def test_a_stream_that_begins_with_zeros_is_another_than_one_that_begins_with_nan(model, plan):
    """Zeros are a state as any other: the mean of a black frame. What begins a stream is said in the file."""
    made = ts.onnx.convert(model, plan.with_tile("HxW:previous"))
    session = ort.InferenceSession(made.to_proto().SerializeToString())
    image = np.random.default_rng(0).standard_normal((1, *SIZE)).astype(np.float32)
    outputs = []
    for start in (np.nan, 0.0):
        kept = {s["input"]: np.full((1, *s["shape"]), start, np.float32) for s in states_of(made)}
        outputs.append(session.run(None, {session.get_inputs()[0].name: image, **kept})[0])
    assert np.isfinite(outputs[0]).all()
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    assert {s["start"] for s in states_of(made)} == {"nan"}


@pytest.mark.parametrize("make", [nhwc_net, lambda: se_net("mean", "gemm", "silu", "hardsigmoid")])
@pytest.mark.parametrize("tile", ["HxW:previous", "2xW:previous+1"])
def test_other_spellings_are_proved(make, tile):
    model = OnnxModel(ir.serde.deserialize_model(make()))
    plan = ts.onnx.find(model)
    made = ts.onnx.convert_verified(model, plan.with_tile(tile))
    assert not made.refused
    assert 0 < made.proof.worst_block < 1e-5
    assert ts.onnx.find(made.model) == plan.with_tile(tile)


def test_what_is_wrong_is_not_handed_out(model, plan, monkeypatch):
    right = frames_module.write

    def wrong(writer, x, axes, tile, *rest):
        return right(writer, x, axes, ts.Tile.parse("1xW:previous+1"), *rest)

    monkeypatch.setattr(frames_module, "write", wrong)
    with pytest.raises(
        ts.TiledSEError, match="a frame of a stream is .* off from itself gated by the frame before"
    ):
        ts.onnx.convert(model, plan.with_tile("1xW:previous"))


def test_a_file_that_lost_its_metadata_or_lies_is_no_block(model, plan):
    made = ts.onnx.convert(model, plan.with_tile("HxW:previous"))
    bare = made.clone()
    bare.ir.metadata_props.clear()
    found = ts.onnx.find(bare)
    assert not len(found)
    assert any("no longer says with which tile" in miss.reason for miss in found.near_misses)
    tiles = json.loads(made.ir.metadata_props["tiledse.tiles"])
    lies = {name: ["2xW:previous", pool] for name, (_, pool) in tiles.items()}
    made.ir.metadata_props["tiledse.tiles"] = json.dumps(lies)
    found = ts.onnx.find(made)
    assert not len(found)
    assert any("says that its tile is 2xW:previous" in miss.reason for miss in found.near_misses)


def test_states_that_the_graph_has_not_are_none(model, plan):
    made = ts.onnx.convert(model, plan.with_tile("HxW:previous"))
    said = json.loads(made.ir.metadata_props["tiledse.states"])
    said["states"][0]["shape"] = [10**12]
    made.ir.metadata_props["tiledse.states"] = json.dumps(said)
    assert len(states_module.states_of(made.ir)) == 1
    with pytest.raises(ts.TiledSEError, match="takes 2 inputs"):
        ts.onnx.module(made)
    for damage in ("[]", "no JSON", '{"states": [1]}', '{"states": 5}'):
        made.ir.metadata_props["tiledse.states"] = damage
        assert states_module.states_of(made.ir) == ()


def test_wrong_use_is_one_line(model, plan):
    wanted = plan.with_tile("HxW:previous")
    with pytest.raises(ts.TiledSEError, match="the form for 'ncnn' has no states"):
        ts.onnx.convert(model, wanted, target="ncnn")
    with pytest.raises(ts.TiledSEError, match="single images are compared here"):
        ts.onnx.verify(model, ts.onnx.convert(model, wanted, verify=False), wanted)
    with pytest.raises(ts.TiledSEError, match="rows of one image are streamed here"):
        ts.stream(ts.open(model, SIZE), wanted)


def test_quantised_blocks_are_refused(model, plan, monkeypatch):
    from tiledse.onnx import converter

    monkeypatch.setattr(converter, "quantised", lambda place: True)
    with pytest.raises(ts.TiledSEError, match="is quantised, and HxW:previous keeps a mean in float"):
        ts.onnx.convert(model, plan.with_tile("HxW:previous"))
