"""The operator by name: torch's own checks of it, compilers, exporters, and ONNX without it."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.op.test_functional import TILES
from tiledse.op import formula, functional
from tiledse.op.formula import mean
from tiledse.op.two_layers import two_layers

OP = torch.ops.tiledse.squeeze_excite
ACTS = {"relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish}
GATES = {"sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid}


def arguments(dtype=torch.float64, channels_last=False, images=2, grad=True):
    torch.manual_seed(0)
    x = torch.randn(images, 5, 8, 4, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    weights = [torch.randn(*shape, dtype=dtype) for shape in ((3, 5), (3,), (5, 3), (5,))]
    return [value.requires_grad_(grad) for value in (x, *weights)]


def by_formula(x, w1, b1, w2, b2, tile, act, gate):
    tile = ts.Tile.parse(tile)
    hidden = ACTS[act]()(torch.conv2d(formula.squeeze(x, tile, mean), w1[:, :, None, None], b1))
    return formula.scale(x, GATES[gate]()(torch.conv2d(hidden, w2[:, :, None, None], b2)), tile)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("tile", TILES)
def test_is_the_formula_and_so_are_its_gradients(tile, channels_last):
    act, gate = [*ACTS][len(tile) % 3], [*GATES][len(tile) % 2]
    found = arguments(channels_last=channels_last)
    y, *kept = OP(*found, tile, act, gate)
    expected = arguments(channels_last=channels_last)
    wanted = by_formula(*expected, tile, act, gate)
    torch.testing.assert_close(y, wanted)
    assert y.stride() == found[0].stride()
    assert not any(value.requires_grad for value in kept)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    wanted.backward(upstream)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, reference.grad)


@pytest.mark.parametrize(
    ("tile", "act", "gate"),
    [
        ("HxW", "relu", "sigmoid"),
        ("3xW", "silu", "hardsigmoid"),
        ("3x3", "hardswish", "sigmoid"),
        ("Hx3", "relu", "sigmoid"),
        ("3xW:middle", "silu", "sigmoid"),
        ("3xW:running", "hardswish", "hardsigmoid"),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own look at it
def test_gradcheck_and_opcheck(tile, act, gate, channels_last):
    given = arguments(channels_last=channels_last)
    assert torch.autograd.gradcheck(lambda *a: OP(*a, tile, act, gate)[0], given)
    checked = torch.library.opcheck(OP.default, (*given, tile, act, gate))
    assert set(checked.values()) == {"SUCCESS"}
    with torch.no_grad():
        y, *kept = OP(*given, tile, act, gate)
    backward = torch.ops.tiledse.squeeze_excite_backward.default
    plain = [value.detach() for value in (y, given[0], given[1], given[3])]
    torch.library.opcheck(
        backward, (*plain, *kept, tile, act, gate), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tile", ["7xW", "HxW", "Hx3", "3x2", "1x1", "3xW:upper"])
def test_strides_and_types_are_those_that_compilers_are_told(tile, dtype, images):
    from torch._subclasses.fake_tensor import FakeTensorMode

    back = torch.ops.tiledse.squeeze_excite_backward
    for channels_last in (False, True):
        x, w1, b1, w2, b2 = arguments(dtype, channels_last, images, grad=False)
        real = OP(x, w1, b1, w2, b2, tile, "relu", "sigmoid")
        real += back(real[0], x, w1, w2, *real[1:], tile, "relu", "sigmoid")
        with FakeTensorMode() as mode:
            x, w1, b1, w2, b2 = map(mode.from_tensor, (x, w1, b1, w2, b2))
            fake = OP(x, w1, b1, w2, b2, tile, "relu", "sigmoid")
            fake += back(fake[0], x, w1, w2, *fake[1:], tile, "relu", "sigmoid")
        for ours, told in zip(real, fake, strict=True):
            assert (ours.shape, ours.stride(), ours.dtype) == (told.shape, told.stride(), told.dtype)


def graph_of(module, x):
    """What torch.compile hands to its backend."""
    torch._dynamo.reset()
    seen = []

    def backend(graph, _):
        seen.append(graph.code)
        return graph

    torch.compile(module, fullgraph=True, backend=backend)(x)
    (code,) = seen
    return code


def test_torch_compile_gets_it_where_it_is_faster(monkeypatch):
    block = ts.TiledSqueezeExcite(8, 4, "7xW")
    x = torch.randn(2, 8, 14, 6)
    assert "tiledse" not in graph_of(block, x)  # a small map
    monkeypatch.setattr(functional, "SMALL_BYTES", 0)
    assert "tiledse" in graph_of(block, x)
    with torch.no_grad():
        assert "tiledse" not in graph_of(block, x)
        assert "tiledse" in graph_of(block, x.to(memory_format=torch.channels_last))
        monkeypatch.setenv("TILEDSE_CPP", "1")
        assert "tiledse" in graph_of(block, x)
        monkeypatch.delenv("TILEDSE_CPP")
    monkeypatch.setenv("TILEDSE_LIBRARY", "0")
    assert "tiledse" not in graph_of(block, x)
    monkeypatch.setenv("TILEDSE_LIBRARY", "1")
    with torch.no_grad():
        assert "tiledse" in graph_of(block, x)
    hooked = ts.TiledSqueezeExcite(8, 4, "7xW")
    hooked.fc1.register_forward_hook(lambda *_: None)
    assert "tiledse" not in graph_of(hooked, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert "tiledse" not in graph_of(block, x)


@pytest.mark.parametrize("asked", ["0", "1"])
def test_compiled_whole_with_gradients(asked, monkeypatch):
    """Through AOTAutograd, which splits forward and backward; inductor itself needs a C++ compiler."""
    monkeypatch.setenv("TILEDSE_LIBRARY", asked)
    torch._dynamo.reset()
    block = ts.TiledSqueezeExcite(8, 4, "5xW", act=nn.SiLU)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 14, 6).to(memory_format=torch.channels_last)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn_like(x)
    compiled(found).backward(upstream)
    ours = [found.grad, *(p.grad.clone() for p in block.parameters())]
    block.zero_grad()
    by_formula(expected, *two_layers(block.excite).weights, "5xW", "silu", "sigmoid").backward(upstream)
    for mine, reference in zip(ours, [expected.grad, *(p.grad for p in block.parameters())], strict=True):
        torch.testing.assert_close(mine, reference)
    assert found.grad.stride() == x.stride()


def test_a_converted_network_exports_whole(monkeypatch):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("regnety_002", num_classes=4).eval()
    plan = ts.find(network, (3, 64, 64)).with_tile("3xW")
    tiled = ts.convert(network, plan)
    x = torch.randn(1, 3, 64, 64)
    for asked, nodes in (("1", len(plan)), ("", 0)):
        monkeypatch.setenv("TILEDSE_LIBRARY", asked)
        program = torch.export.export(tiled, (x,), strict=False)
        assert sum("tiledse" in str(node.target) for node in program.graph.nodes) == nodes
        torch.testing.assert_close(program.module()(x), tiled(x))


def test_export_by_tracing_bytecode(monkeypatch):
    monkeypatch.setenv("TILEDSE_LIBRARY", "1")
    block, x = ts.TiledSqueezeExcite(8, 4, "3xW").eval(), torch.randn(1, 8, 7, 5)
    program = torch.export.export(block, (x,), strict=True)
    assert sum("tiledse" in str(node.target) for node in program.graph.nodes) == 1
    torch.testing.assert_close(program.module()(x), block(x))


def test_onnx_files_have_plain_operators(monkeypatch, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    monkeypatch.delenv("TILEDSE_LIBRARY", raising=False)
    block = ts.TiledSqueezeExcite(8, 4, "3xW").eval()
    torch.onnx.export(
        block, (torch.randn(1, 8, 7, 5),), tmp_path / "block.onnx", dynamo=True, external_data=False, verbose=False
    )  # fmt: skip
    model = onnx.load(tmp_path / "block.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions


@pytest.mark.parametrize("change", ["bias", "hook", "width", "kernel", "act", "gate", "subclass"])
def test_other_excitations_are_called_layer_by_layer(change):
    block = ts.TiledSqueezeExcite(
        8, 4, "3xW", bias=change != "bias", kernel_size=3 if change == "kernel" else 1
    )
    if change == "hook":
        block.act.register_forward_hook(lambda *_: None)
    elif change == "act":
        block.act = nn.GELU()
    elif change == "gate":
        block.gate = nn.Tanh()
    elif change == "subclass":
        block.fc1.__class__ = type("Mine", (nn.Conv2d,), {})
    elif change == "width":
        block.layers = lambda: (block.fc1, block.act, nn.Conv2d(4, 8, 1, stride=2), block.gate)
    assert two_layers(block.excite) is None


def test_an_excitation_of_one_s_own_is_called():
    class Mine(ts.TiledSqueezeExcite):
        def excite(self, descriptors):
            return super().excite(descriptors) + 1

    block = Mine(8, 4, "3xW")
    assert two_layers(block.excite) is None
    other = ts.TiledSqueezeExcite(8, 4, "3xW")
    other.excite = MethodType(lambda self, z: z, other)
    assert two_layers(other.excite) is None
    assert two_layers(super(Mine, block).excite) is None
    assert two_layers(torch.sigmoid) is None


@pytest.mark.slow
def test_networks_of_timm_and_torchvision_are_two_layers():
    import timm
    import torchvision

    for network in (
        timm.create_model("regnety_002"),
        timm.create_model("efficientnet_b0"),
        timm.create_model("mobilenetv3_large_100"),
        torchvision.models.mobilenet_v3_small(),
    ):
        plan = ts.find(network, (3, 64, 64))
        tiled = ts.convert(network, plan.with_tile("3xW"))
        for name in (block.name for block in plan.blocks):
            assert two_layers(tiled.get_submodule(name).excite) is not None
