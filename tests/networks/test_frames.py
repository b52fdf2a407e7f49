"""Blocks that are gated by the previous frame: numbers, states, and what is refused."""

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tiledse as ts
from tests.networks.handwritten import LinearView
from tests.reference import frames_gated_by_the_last, two_layers
from tiledse.networks import frames as frames_module

TILES = (
    "HxW:previous",
    "1xW:previous",
    "2xW:previous+1",
    "1xW:previous-1",
    "3xW:previous-2",
    "4xW:previous+9",
)
SIZE = (3, 10, 6)


class Net(nn.Module):
    """Two SE blocks of timm between convolutions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one = nn.Conv2d(3, 12, 3, padding=1), timm.layers.SEModule(12, rd_channels=4)
        self.middle, self.two = nn.Conv2d(12, 8, 3, padding=1), timm.layers.SEModule(8, rd_channels=4)

    def forward(self, x):
        return self.two(self.middle(self.one(self.stem(x))))


@pytest.fixture(scope="module")
def model():
    return Net().eval()


@pytest.fixture(scope="module")
def plan(model):
    return ts.find(model, SIZE)


def excitation(block):
    weights = (block.fc1.weight[:, :, 0, 0], block.fc1.bias, block.fc2.weight[:, :, 0, 0], block.fc2.bias)
    return two_layers(*(w.detach().double().numpy() for w in weights))


@pytest.mark.parametrize("tile", TILES)
def test_every_frame_is_that_of_numpy_loops(model, plan, tile):
    video = ts.convert(model, plan.with_tile(tile)).double()
    maps = {name: ([], []) for name in ("one", "two")}
    for name, (before, after) in maps.items():
        block = video.get_submodule(name)
        block.register_forward_pre_hook(lambda m, args, a=before: a.append(args[0].numpy()))
        block.register_forward_hook(lambda m, args, out, b=after: b.append(out.numpy()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(4):
            video(torch.randn(2, *SIZE, generator=generator, dtype=torch.float64))
    for name, (before, after) in maps.items():
        for stream in range(2):
            wanted = frames_gated_by_the_last(
                [x[stream] for x in before], tile, excitation(model.double().get_submodule(name))
            )
            for frame, (got, expected) in enumerate(zip(after, wanted, strict=True)):
                np.testing.assert_allclose(got[stream], expected, rtol=1e-9, err_msg=f"{name}, frame {frame}")
    model.float()


def test_a_still_picture_becomes_that_of_se_after_a_frame_a_block():
    model = timm.create_model("tf_mobilenetv3_small_100", num_classes=10).eval()
    plan = ts.find(model, (3, 64, 64)).with_tile("HxW:previous")
    video = ts.convert(model, plan)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        se, frames = model(x), [video(x) for _ in range(len(plan) + 1)]
    apart = [float((frame - se).abs().max() / se.abs().max()) for frame in frames]
    assert apart[0] > 1e-3
    assert apart[-1] < 1e-5


@given(height=st.integers(1, 40), tall=st.integers(1, 45), ahead=st.integers(-45, 45))
def test_shares_of_two_frames_are_those_of_rows_counted_one_by_one(height, tall, ahead):
    ahead = max(ahead, -tall)
    tile = ts.Tile.parse(f"{tall}xW:previous{ahead:+d}")
    this, before = tile.shares_of_frames(height)
    np.testing.assert_allclose((this + before).sum(1), 1)
    assert len(this) == tile.tiles(height, 5)
    for row in range(height):
        strip = row // tall if len(this) > 1 else 0
        seen = [r for r in range(height) if r <= strip * tall + tall - 1 + ahead]
        np.testing.assert_allclose(this[strip], [(r in seen) / height for r in range(height)])
        np.testing.assert_allclose(before[strip], [(r not in seen) / height for r in range(height)])


def test_conversion_keeps_names_and_plan_and_starts_without_a_frame(model, plan):
    tiles = plan.with_tile("HxW:previous", "one").with_tile("2xW:previous+1", "two")
    video = ts.convert(model, tiles)
    assert video.state_dict().keys() == model.state_dict().keys()
    assert ts.find(video, SIZE) == tiles == ts.Plan.from_dict(tiles.to_dict())
    assert ts.find(video, SIZE).network == plan.network
    assert ts.frame_states(video) == {}
    with torch.no_grad():
        video(torch.ones(2, *SIZE))
        assert ts.find(video, SIZE) == tiles  # looking at it is no frame
        states = ts.frame_states(video)
        assert {name: tuple(s.shape) for name, s in states.items()} == {"one": (2, 12), "two": (2, 8, 10)}
        back = ts.convert(video, plan)
        assert torch.equal(back(torch.ones(1, *SIZE)), model(torch.ones(1, *SIZE)))
    again = ts.convert(video, tiles.with_tile("HxW:previous"))
    assert ts.frame_states(again) == {}
    assert "previous" in repr(video.one)


def test_streams_begin_again_one_by_one_and_go_on_elsewhere(model, plan):
    video = ts.convert(model, plan.with_tile("1xW:previous"))
    x = torch.randn(4, 2, *SIZE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        first = video(x[0])
        video(x[1])
        kept, twin, loaded = ts.frame_states(video), copy.deepcopy(video), pickle.loads(pickle.dumps(video))
        wanted = video(x[2])
        assert torch.equal(twin(x[2]), wanted)
        assert torch.equal(loaded(x[2]), wanted)
        other = ts.convert(model, plan.with_tile("1xW:previous"))
        ts.set_frame_states(other, kept)
        assert torch.equal(other(x[2]), wanted)
        ts.reset_frames(video, [1])
        mixed, both = video(x[0]), other(x[0])
        torch.testing.assert_close(mixed[1], first[1])
        torch.testing.assert_close(mixed[0], both[0])
        assert not torch.allclose(mixed[0], first[0])
        ts.reset_frames(video)
        torch.testing.assert_close(video(x[0, :1]), first[:1])  # another batch, since all begin again


def test_a_frame_under_inference_mode_is_followed_by_one_with_gradients(model, plan):
    video = ts.convert(model, plan.with_tile("HxW:previous"))
    with torch.inference_mode():
        video(torch.ones(1, *SIZE))
    x = torch.ones(1, *SIZE, requires_grad=True)
    video(x).sum().backward()
    assert x.grad is not None
    assert not ts.frame_states(video)["one"].requires_grad


def test_cost_counts_a_state_and_no_buffer(plan):
    cost = ts.cost(plan.with_tile("HxW:previous"))
    assert (cost.tse.buffer, cost.tse.buffer_row_order, cost.tse.macs) == (0, 0, cost.se.macs)
    assert cost.tse.state == 12 + 8
    assert cost.blocks[0].state == 12
    mixed = ts.cost(plan.with_tile("2xW:previous+1"))
    assert mixed.tse.state == 10 * (12 + 8)
    assert mixed.tse.buffer == mixed.tse.buffer_row_order == 3 * 6 * (12 + 8)
    assert ts.cost(plan.with_tile("1xW:previous-1")).tse.buffer == 0
    assert ts.cost(plan.with_tile("7xW")).tse.state == 0


def test_what_is_wrong_is_not_handed_out(model, plan, monkeypatch):
    right = frames_module.descriptors
    monkeypatch.setattr(
        frames_module, "descriptors", lambda rows, tile, before: right(rows, tile, 0.9 * before)
    )
    with pytest.raises(
        ts.TiledSEError, match="no block could be converted.*frame 2 of a stream is not gated"
    ):
        ts.convert(model, plan.with_tile("HxW:previous"))


def test_a_stream_keeps_its_size_and_its_batch(model, plan):
    video = ts.convert(model, plan.with_tile("HxW:previous"))
    with torch.no_grad():
        video(torch.ones(1, *SIZE))
        for shape in ((2, *SIZE), (1, 3, 12, 6)):
            with pytest.raises(ts.TiledSEError, match=r"after one of \(1, 12, 10, 6\); .* ts.reset_frames"):
                video(torch.ones(shape))
    with pytest.raises(ts.TiledSEError, match="in eval mode; call eval"):
        video.train()(torch.ones(1, *SIZE))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m, p: ts.stream(m, p), "rows of one image are streamed here"),
        (lambda m, p: ts.simulate(m, p), "rows of one image are streamed here"),
        (lambda m, p: ts.calibrate(m, p, lambda: iter([])), "fitted on single images"),
        (lambda m, p: ts.report(m, p), "a report is about single images"),
        (lambda m, p: next(ts.open(m, SIZE).branches([p])(torch.ones(1, *SIZE))), "single images are no stream"),
        (lambda m, p: torch.export.export(ts.convert(m, p), (torch.ones(1, *SIZE),)), "a trace of one call does not"),
        (lambda m, p: torch.func.vmap(ts.convert(m, p))(torch.ones(2, 1, *SIZE)), "transforms of torch.func"),
        (lambda m, p: ts.tiled_squeeze_excite(torch.ones(1, 3, 4, 4), torch.sigmoid, "HxW:previous"), "of one map"),
        (lambda m, p: ts.TiledSqueezeExcite(8, 4, "HxW:previous"), "built from scratch"),
        (lambda m, p: ts.reset_frames(m), "no block of this network keeps a state"),
        (lambda m, p: ts.reset_frames(ts.convert(m, p), [0]), "no frame has come yet"),
        (lambda m, p: ts.set_frame_states(ts.convert(m, p), {}), "states of other blocks: 'one'"),
        (lambda m, p: ts.Tile.parse("7x7:previous"), "strips of rows only"),
        (lambda m, p: ts.Tile.parse("HxW:previous+3"), "a look-ahead needs strips of rows"),
        (lambda m, p: ts.Tile.parse("2xW:previous-3"), "look-ahead of at least -2"),
        (lambda m, p: ts.Tile.parse("HxW:previous").bounds(5), "which one map cannot show"),
        (lambda m, p: ts.Tile.parse("7xW").shares_of_frames(5), "see one frame only"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(model, plan, use, message):
    with pytest.raises(ts.TiledSEError, match=message):
        use(model, plan.with_tile("HxW:previous"))


def test_a_block_that_is_called_twice_has_no_previous_frame():
    class Twice(Net):
        def forward(self, x):
            x = self.one(self.stem(x))
            return self.one(x)

    model = Twice().eval()
    with pytest.raises(ts.TiledSEError, match="called 2 times a frame"):
        ts.convert(model, ts.find(model, SIZE).with_tile("HxW:previous"))


def test_a_block_in_another_spelling_keeps_a_state_too():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), LinearView()).eval()
    plan = ts.find(model, SIZE).with_tile("2xW:previous+1")
    video = ts.convert(model, plan)
    x = torch.randn(3, 1, *SIZE)
    with torch.no_grad():
        outputs = [video(frame) for frame in x]
        maps = [model[0](frame)[0].double().numpy() for frame in x]
        layers = model[1].fc
        excite = lambda z: layers(torch.tensor(z)[None].float())[0].double().numpy()  # noqa: E731
        wanted = frames_gated_by_the_last(maps, "2xW:previous+1", excite)
    for got, expected in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(got[0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_copies_of_data_parallel_lose_states_and_are_refused(model, plan):
    video = ts.convert(model, plan.with_tile("HxW:previous"))
    video.one._is_replica = True  # as torch.nn.parallel.replicate marks them
    with pytest.raises(ts.TiledSEError, match="DataParallel's copies lose"):
        video(torch.ones(1, *SIZE))


@pytest.mark.slow
def test_compiled_code_keeps_states(model, plan):
    video, same = (ts.convert(model, plan.with_tile("1xW:previous")) for _ in range(2))
    compiled = torch.compile(video, backend="eager")
    with torch.no_grad():
        for frame in torch.randn(3, 2, *SIZE):
            torch.testing.assert_close(compiled(frame), same(frame), rtol=1e-4, atol=1e-6)
