"""The operator by name: torch's own checks of it, compilers, exporters, and ONNX without it."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.op.test_functional import TILES
from tiledse.op import formula
from tiledse.op.excitation import TwoLayers, two_layers
from tiledse.op.formula import mean

OP = torch.ops.tiledse.forward
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
    (y,) = OP(*found, tile, act, gate, False)
    expected = arguments(channels_last=channels_last)
    wanted = by_formula(*expected, tile, act, gate)
    torch.testing.assert_close(y, wanted)
    assert y.stride() == found[0].stride()
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
    assert torch.autograd.gradcheck(lambda *a: OP(*a, tile, act, gate, False)[0], given)
    checked = torch.library.opcheck(OP.default, (*given, tile, act, gate, False))
    assert set(checked.values()) == {"SUCCESS"}
    with torch.no_grad():
        y, *kept = OP(*given, tile, act, gate, True)
    backward = torch.ops.tiledse.backward.default
    plain = [value.detach() for value in (y, given[0], given[1], given[3])]
    torch.library.opcheck(
        backward, (*plain, *kept, tile, act, gate), test_utils=("test_schema", "test_faketensor")
    )


def test_what_is_saved_has_no_gradients_and_says_so():
    with pytest.raises(ts.TiledSEError, match="with save gives no gradients"):
        OP(*arguments(), "3xW", "relu", "sigmoid", True)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tile", ["7xW", "HxW", "Hx3", "3x2", "1x1", "3xW:upper"])
def test_strides_and_types_are_those_that_compilers_are_told(tile, dtype, images):
    from torch._subclasses.fake_tensor import FakeTensorMode

    back = torch.ops.tiledse.backward
    for channels_last in (False, True):
        x, w1, b1, w2, b2 = arguments(dtype, channels_last, images, grad=False)
        real = OP(x, w1, b1, w2, b2, tile, "relu", "sigmoid", True)
        real += back(real[0], x, w1, w2, *real[1:], tile, "relu", "sigmoid")
        with FakeTensorMode() as mode:
            x, w1, b1, w2, b2 = map(mode.from_tensor, (x, w1, b1, w2, b2))
            fake = OP(x, w1, b1, w2, b2, tile, "relu", "sigmoid", True)
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


def test_torch_compile_gets_it():
    block, x = ts.TiledSqueezeExcite(8, 4, "7xW"), torch.randn(2, 8, 14, 6)
    assert "tiledse.forward" in graph_of(block, x)
    with torch.no_grad():
        assert "tiledse.forward" in graph_of(block, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert "tiledse.forward" in graph_of(block, x.bfloat16())
    hooked = ts.TiledSqueezeExcite(8, 4, "7xW")
    hooked.fc1.register_forward_hook(lambda *_: None)
    assert "tiledse" not in graph_of(hooked, x)


@pytest.mark.parametrize("known", [True, False])
def test_compiled_whole_with_gradients(known):
    """Through AOTAutograd, which splits forward and backward; inductor itself needs a C++ compiler."""
    torch._dynamo.reset()
    block = ts.TiledSqueezeExcite(8, 4, "5xW", act=nn.SiLU)
    if not known:
        block.act = nn.Sequential(nn.SiLU())
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 8, 14, 6).to(memory_format=torch.channels_last)
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn_like(x)
    compiled(found).backward(upstream)
    ours = [found.grad, *(p.grad.clone() for p in block.parameters())]
    block.zero_grad()
    weights = [p.flatten(1) if p.dim() > 1 else p for p in block.parameters()]
    by_formula(expected, *weights, "5xW", "silu", "sigmoid").backward(upstream)
    for mine, reference in zip(ours, [expected.grad, *(p.grad for p in block.parameters())], strict=True):
        torch.testing.assert_close(mine, reference)
    assert found.grad.stride() == x.stride()


@pytest.mark.parametrize("tile", ["3xW", "1xW:running+2", "Hx3"])
def test_compiled_for_maps_of_any_size(tile):
    torch._dynamo.reset()
    block = ts.TiledSqueezeExcite(8, 4, tile)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for height, width in ((14, 6), (9, 11), (20, 7)):
        x = torch.randn(2, 8, height, width, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, block(x))
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        torch.testing.assert_close(grad, torch.autograd.grad(block(x).square().sum(), x)[0])


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_compiled_under_torch_func(transform):
    torch._dynamo.reset()
    block, x = ts.TiledSqueezeExcite(8, 4, "3xW"), torch.randn(3, 2, 8, 7, 6)
    if transform == "vmap":
        function = torch.func.vmap(block)
    else:
        function = torch.func.grad(lambda maps: block(maps.flatten(0, 1)).square().sum())
    with torch.no_grad() if transform == "vmap" else torch.enable_grad():
        torch.testing.assert_close(torch.compile(function, backend="aot_eager")(x), function(x))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_are_plain_operators(strict):
    block, x = ts.TiledSqueezeExcite(8, 4, "3xW").eval(), torch.randn(1, 8, 7, 5)
    program = torch.export.export(block, (x,), strict=strict)
    assert not any("tiledse" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), block(x))


def test_onnx_files_have_plain_operators(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
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
    assert isinstance(two_layers(block.excite), str)


def test_an_excitation_of_one_s_own_is_called():
    class Mine(ts.TiledSqueezeExcite):
        def excite(self, descriptors):
            return super().excite(descriptors) + 1

    block = Mine(8, 4, "3xW")
    assert isinstance(two_layers(block.excite), str)
    other = ts.TiledSqueezeExcite(8, 4, "3xW")
    other.excite = MethodType(lambda self, z: z, other)
    assert isinstance(two_layers(other.excite), str)
    assert isinstance(two_layers(super(Mine, block).excite), str)
    assert isinstance(two_layers(torch.sigmoid), str)


def test_a_gate_of_timm_that_was_given_another_forward_is_called(monkeypatch):
    from timm.layers.activations import HardSigmoid

    block, x = ts.TiledSqueezeExcite(8, 4, "2xW", gate=HardSigmoid), torch.randn(1, 8, 4, 6)
    assert isinstance(two_layers(block.excite), TwoLayers)
    monkeypatch.setattr(HardSigmoid, "forward", lambda self, descriptors: torch.ones_like(descriptors))
    assert torch.equal(block(x), x)


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
            assert isinstance(two_layers(tiled.get_submodule(name).excite), TwoLayers)
