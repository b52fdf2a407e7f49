"""The example ContextNet: sound of unknown length, frame by frame."""

import importlib.util

import torch

import tiledse as ts
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("contextnet", ROOT / "examples" / "contextnet.py")
contextnet = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contextnet)


def test_a_stream_of_unknown_length_is_the_whole():
    torch.manual_seed(0)
    model = contextnet.tiled("1xT:running").eval()
    plan = ts.find(model, (40, 64))
    assert [str(t) for t in plan.tiles] == ["1xT:running"] * 4
    x = torch.randn(1, 40, 85)
    streamed = ts.stream(model, plan, height=None, rows=4)
    with torch.no_grad():
        outputs = [y for at in range(0, 85, 4) if (y := streamed.push(x[:, :, at : at + 4])) is not None]
        got = torch.cat([*outputs, streamed.finish()], 2)
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
    assert len(outputs) > 5


def test_what_came_is_not_changed_by_what_comes():
    torch.manual_seed(0)
    model = contextnet.tiled("1xT:running").eval()
    x = torch.randn(1, 40, 200)
    with torch.no_grad():
        whole, part = model(x), model(x[:, :, :120])
    # The convolutions see 11 frames of four ahead; the gates see none.
    torch.testing.assert_close(part[:, :, :18], whole[:, :, :18], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(part[:, :, -1], whole[:, :, 29], rtol=1e-4, atol=1e-6)


def test_the_network_of_the_command_line_has_plain_se():
    plan = ts.find(contextnet.small(), (40, 256))
    assert [(b.channels, b.height) for b in plan.blocks] == [(48, 128), (64, 128), (64, 64), (80, 64)]
    assert all(t.whole for t in plan.tiles)
