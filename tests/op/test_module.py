"""TiledSqueezeExcite: the variants of appendix B."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import tiledse as ts


@pytest.mark.parametrize(
    ("tile", "kernel_size", "shape"),
    [
        ("1xW", 1, (1, 1)),
        ("1xW", (3, 1), (3, 1)),
        ("Hx1", (3, 1), (1, 3)),  # 3 along the axis in which the tiles follow each other
        ("1x1", 3, (3, 3)),
        ("7x7", (3, 1), (3, 1)),
    ],
)
def test_kernels(tile, kernel_size, shape):
    block = ts.TiledSqueezeExcite(8, 4, tile, kernel_size=kernel_size)
    assert block.fc1.kernel_size == block.fc2.kernel_size == shape
    x = torch.randn(2, 8, 12, 10)
    z = ts.op.squeeze(x, tile)
    padding = [side // 2 for side in shape]
    hidden = nn.functional.conv2d(z, block.fc1.weight, block.fc1.bias, padding=padding).relu()
    gates = nn.functional.conv2d(hidden, block.fc2.weight, block.fc2.bias, padding=padding).sigmoid()
    h, w = ts.Tile.parse(tile).size(12, 10)
    of_row, of_col = torch.arange(12) // h, torch.arange(10) // w
    torch.testing.assert_close(block(x), x * gates[:, :, of_row][:, :, :, of_col])


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.Hardswish])
@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid])
def test_any_activation_and_gate(act, gate):
    block = ts.TiledSqueezeExcite(6, 3, "HxW", act=act, gate=gate, bias=False)
    assert block.fc1.bias is None
    x = torch.randn(2, 6, 5, 5)
    z = x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(block(x), x * gate()(block.fc2(act()(block.fc1(z)))))


def test_printed():
    assert "tile=7xW:middle" in repr(ts.TiledSqueezeExcite(4, 2, "7xW:middle"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, "7xW"), "at least 1"),
        ((4, 4, "7"), "no tile"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ts.TiledSEError, match=message):
        ts.TiledSqueezeExcite(*arguments)


@pytest.mark.parametrize("kernel_size", [2, 0, (3, 2)])
def test_even_kernels(kernel_size):
    with pytest.raises(ts.TiledSEError, match="odd kernel_size"):
        ts.TiledSqueezeExcite(4, 4, "1xW", kernel_size=kernel_size)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("name", ["fc1", "act", "fc2", "gate"])
def test_hooks_of_every_layer_are_called(name, kind):
    block, calls = ts.TiledSqueezeExcite(8, 4, "2xW"), []
    getattr(getattr(block, name), f"register_{kind}_hook")(lambda *_: calls.append(name))
    block(torch.randn(1, 8, 4, 6, requires_grad=True)).sum().backward()
    assert calls == [name]


def test_trains_under_autocast_and_is_called_so():
    block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.randn(2, 8, 5, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        with torch.no_grad():
            torch.testing.assert_close(block(x), y)
    y.square().sum().backward()
    assert y.dtype == x.grad.dtype == block.fc1.weight.grad.dtype == torch.float32
    given = x.grad.clone()
    x.grad = None
    block(x).square().sum().backward()
    torch.testing.assert_close(given, x.grad, rtol=0.05, atol=0.05)


def trained(block):
    """Gradients of the parameters after one step forward and back."""
    block.zero_grad()
    block(torch.ones(1, 8, 4, 6)).square().sum().backward()
    return [p.grad for p in block.parameters()]


def test_what_a_block_is_made_of_may_change_between_calls():
    torch.manual_seed(0)
    block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.ones(1, 8, 4, 6)

    def is_as_its_layers():
        z = torch.ones(1, 8, 2, 1)
        gates = block.gate(block.fc2(block.act(block.fc1(z))))
        torch.testing.assert_close(block(x), x * gates.repeat_interleave(2, 2))
        assert all(grad is not None for grad in trained(block))

    with torch.inference_mode():
        block(x)
    is_as_its_layers()
    with torch.no_grad():
        block(x)
        block.fc1.weight.mul_(3)
    is_as_its_layers()
    block.fc1.weight.data = torch.randn(4, 8, 1, 1)
    is_as_its_layers()
    block.fc2 = nn.Conv2d(4, 8, 1)
    is_as_its_layers()
    block.act = nn.GELU()  # not one that the kernels know
    is_as_its_layers()
    block.act = nn.SiLU()
    is_as_its_layers()
    block.fc1.weight = nn.Parameter(torch.randn(4, 8, 1, 1))
    is_as_its_layers()
    nn.utils.parametrizations.weight_norm(block.fc1)
    is_as_its_layers()
    twin = copy.deepcopy(block)
    twin.fc2.weight.data.zero_()
    assert not torch.equal(twin(x), block(x))
    block.fc2.bias = None
    z = torch.ones(1, 8, 2, 1)
    gates = block.gate(block.fc2(block.act(block.fc1(z))))
    torch.testing.assert_close(block(x), x * gates.repeat_interleave(2, 2))


@pytest.mark.parametrize("name", ["fc1", "act", "fc2", "gate"])
def test_hooks_that_come_later_are_called(name):
    block, calls, x = ts.TiledSqueezeExcite(8, 4, "2xW"), [], torch.randn(1, 8, 4, 6)
    block(x)
    handle = getattr(block, name).register_forward_hook(lambda *_: calls.append(name))
    block(x)
    handle.remove()
    block(x)
    assert calls == [name]


def test_weights_are_cut_turned_or_swapped_in_place_of_their_numbers():
    torch.manual_seed(0)
    block, x = ts.TiledSqueezeExcite(4, 4, "2xW"), torch.randn(1, 4, 4, 6)

    def is_as_its_layers():
        z = x.unflatten(2, (2, 2)).mean((3, 4))[..., None]
        gates = block.gate(block.fc2(block.act(block.fc1(z))))
        torch.testing.assert_close(block(x), x * gates.repeat_interleave(2, 2))

    with torch.no_grad():
        is_as_its_layers()
        block.fc1.weight.data = block.fc1.weight.data.transpose(0, 1)
        is_as_its_layers()
        block.fc1.weight.data, block.fc1.bias.data = block.fc1.weight.data[:3], block.fc1.bias.data[:3]
        block.fc2.weight.data = block.fc2.weight.data[:, :3]
        is_as_its_layers()
        torch.utils.swap_tensors(block.fc1.weight, nn.Parameter(torch.randn(3, 4, 1, 1)))
        is_as_its_layers()


@pytest.mark.parametrize("change", ["patched", "class"])
def test_an_excitation_that_is_replaced_later_is_called(change):
    class Mine(ts.TiledSqueezeExcite):
        pass

    class Other(ts.TiledSqueezeExcite):
        def excite(self, descriptors):
            return torch.ones_like(descriptors)

    block, x = Mine(4, 2, "2xW"), torch.randn(1, 4, 4, 6)
    assert not torch.equal(block(x), x)
    if change == "patched":
        Mine.excite = Other.excite
    else:
        block.__class__ = Other
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_a_layer_that_does_nothing_are_called(kind):
    class Normed(ts.TiledSqueezeExcite):
        def __init__(self):
            super().__init__(8, 4, "2xW")
            self.bn = nn.Identity()

        def excite(self, descriptors):
            return self.gate(self.fc2(self.act(self.bn(self.fc1(descriptors)))))

        def layers(self):
            return self.fc1, self.bn, self.act, self.fc2, self.gate

    block, calls, x = Normed(), [], torch.randn(1, 8, 4, 6, requires_grad=True)
    block(x).sum().backward()
    getattr(block.bn, f"register_{kind}_hook")(lambda *_: calls.append(kind))
    block(x).sum().backward()
    assert calls == [kind]


@pytest.mark.parametrize("layers", [nn.Sequential, nn.ModuleList, lambda *layers: None])
def test_a_block_of_one_s_own_may_call_anything_layers(layers):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.squeezed = nn.Conv2d(8, 8, 1)
            self.layers = layers([self.squeezed]) if layers is nn.ModuleList else layers(self.squeezed)

        def excite(self, descriptors):
            return self.squeezed(descriptors).sigmoid()

    block, x = Mine(), torch.randn(1, 8, 4, 6)
    assert ts.tiled_squeeze_excite(x, block.excite, "2xW").shape == x.shape


class Doubled(nn.Conv2d):
    """Gives twice what its weights say."""

    def forward(self, x):
        return 2 * super().forward(x)


def doubled(convolution):
    return lambda *given: 2 * convolution(*given)


CHANGES = {
    "forward of the class": lambda b, patch: patch.setattr(nn.Conv2d, "forward", doubled(nn.Conv2d.forward)),
    "convolution of the class": lambda b, patch: patch.setattr(
        nn.Conv2d, "_conv_forward", doubled(nn.Conv2d._conv_forward)
    ),
    "forward of an activation": lambda b, patch: patch.setattr(nn.ReLU, "forward", lambda self, x: x.abs()),
    "forward of a layer": lambda b, patch: setattr(b.fc1, "forward", doubled(b.fc1.forward)),
    "convolution of a layer": lambda b, patch: setattr(b.fc1, "_conv_forward", doubled(b.fc1._conv_forward)),
    "call of a layer": lambda b, patch: setattr(b.fc2, "_call_impl", doubled(b.fc2._call_impl)),
    "class of a layer": lambda b, patch: setattr(b.fc2, "__class__", Doubled),
    "weight beside its parameter": lambda b, patch: vars(b.fc1).update(weight=torch.ones(4, 8, 1, 1)),
    "a negative view": lambda b, patch: setattr(b.fc1, "bias", nn.Parameter(torch._neg_view(torch.ones(4)))),
    "stride": lambda b, patch: b.fc1.__dict__.update(stride=(2, 1)),
    "a hook on all modules": lambda b, patch: b.handles.append(
        nn.modules.module.register_module_forward_hook(
            lambda m, _, out: 2 * out if isinstance(m, nn.Conv2d) else out
        )
    ),
    "pruned": lambda b, patch: prune.l1_unstructured(b.fc1, "weight", 0.5),
    "a parametrization": lambda b, patch: nn.utils.parametrizations.weight_norm(b.fc1),
    "no bias any more": lambda b, patch: b.fc1.register_parameter("bias", None),
    "a layer in its place": lambda b, patch: setattr(b, "fc2", Doubled(4, 8, 1)),
    "a parameter in its place": lambda b, patch: setattr(b.fc1, "bias", nn.Parameter(torch.ones(4))),
    "another activation": lambda b, patch: setattr(b, "act", nn.GELU()),
    "training": lambda b, patch: b.train(not b.training),
    "frozen": lambda b, patch: b.requires_grad_(False),
}


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_unseen_is_followed(change, converted, monkeypatch):
    """Before and after each change, the block gives what its layers give when they are called one by one."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 6)
    block: nn.Module = ts.TiledSqueezeExcite(8, 4, "2xW")
    if converted:
        from timm.layers import SEModule

        network = nn.Sequential(SEModule(8, rd_channels=4))
        block = ts.convert(network, ts.find(network, (8, 4, 6)).with_tile("2xW"))[0]
    vars(block)["handles"] = []

    def is_as_its_layers():
        z = x.unflatten(2, (2, 2)).mean((3, 4))[..., None]
        gates = block.gate(block.fc2(block.act(block.fc1(z))))
        if gates.shape[2] == 2:
            torch.testing.assert_close(block(x), x * gates.repeat_interleave(2, 2))
        else:
            with pytest.raises(ts.TiledSEError, match="an excitation keeps the grid"):
                block(x)

    try:
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                is_as_its_layers()
        CHANGES[change](block, monkeypatch)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                is_as_its_layers()
    finally:
        for handle in block.handles:
            handle.remove()


@pytest.mark.parametrize("way", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_and_moves_gate_by_their_own_weights(way):
    block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.randn(1, 8, 4, 6)
    before = block(x)
    twin = way(block)
    nn.init.zeros_(twin.fc2.weight)
    nn.init.zeros_(twin.fc2.bias)
    torch.testing.assert_close(twin(x), x / 2)
    torch.testing.assert_close(block(x), before)
    torch.testing.assert_close(twin.double()(x.double()), x.double() / 2)
    assert twin.float().to("meta")(x.to("meta")).shape == x.shape
    swapped = {"fc2.weight": torch.zeros(8, 4, 1, 1), "fc2.bias": torch.zeros(8)}
    torch.testing.assert_close(torch.func.functional_call(block, swapped, (x,)), x / 2)
    torch.testing.assert_close(block(x), before)


def test_a_map_that_stands_for_its_negative():
    block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.randn(1, 8, 4, 6)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(block(torch._neg_view(x)), block(-x))
    with torch.no_grad():
        y = ts.tiled_squeeze_excite(torch._neg_view(x.clone()), block.excite, "2xW", inplace=True)
        torch.testing.assert_close(y, block(-x))


def test_who_listens_to_torch_hears_of_the_operator():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            heard.append(str(function))
            return function(*args, **kwargs or {})

    heard: list[str] = []
    block, x = ts.TiledSqueezeExcite(8, 4, "2xW"), torch.randn(1, 8, 4, 6, requires_grad=True)
    with Listener():
        y = block(x)
        with torch.no_grad():
            block(x)
    with Listener():
        y.sum().backward()
    assert heard.count("tiledse.forward.default") == 2
    assert heard.count("tiledse.backward.default") == 1
    with torch.profiler.profile() as profile, torch.no_grad():
        block(x)
    assert "tiledse::forward" in {event.key for event in profile.key_averages()}
