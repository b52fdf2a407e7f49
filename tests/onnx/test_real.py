"""Networks that others exported: the files of ../shared, and those in the wheel of rapidocr."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import onnx
import tiledse as ts
from tiledse.cost import cost
from tiledse.onnx import convert, find, load, module, save, verify
from tiledse.onnx.counting import count

SHARED = {
    "tf_mobilenetv3_small_100_ts": (9, 1, (3, 224, 224)),
    "tf_mobilenetv3_small_100_dynamo": (9, 1, (3, 224, 224)),
    "centernet_mobilenetv3_075": (9, 0, (3, 256, 192)),
    "selfie_segmentation": (6, 4, (3, 160, 144)),
}
RAPIDOCR = {
    "PP-OCRv6_det_small": (13, 0, (3, 192, 160)),
    "PP-OCRv6_rec_small": (5, 0, (3, 48, 160)),
    "ch_ppocr_mobile_v2.0_cls_mobile": (9, 1, (3, 48, 192)),
}
NETWORKS = {**SHARED, **RAPIDOCR}


@pytest.fixture
def network(request, shared):
    if request.param in RAPIDOCR:
        rapidocr = pytest.importorskip("rapidocr", reason="real networks from the wheel of rapidocr")
        path = Path(rapidocr.__file__).parent / "models" / f"{request.param}.onnx"
    else:
        path = shared / "models" / f"{request.param}.onnx"
    return path, *NETWORKS[request.param]


# By default a detector of text and one of objects; the others are spelled as one of these.
ALWAYS = ("PP-OCRv6_det_small", "centernet_mobilenetv3_075")


@pytest.mark.parametrize(
    "network",
    [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS],
    indirect=True,
)
def test_a_real_network_is_converted_exactly_and_touched_nowhere_else(network, tmp_path):
    path, blocks, misses, size = network
    before = path.read_bytes()
    model = load(path)
    plan = find(model, size)
    assert (len(plan), len(plan.near_misses)) == (blocks, misses)
    wanted = plan.with_tile("7xW").with_tile("3xW:running", plan.blocks[1].name)
    converted = convert(model, wanted)
    save(converted, tmp_path / "out.onnx")
    again = load(tmp_path / "out.onnx")
    assert find(again, size) == wanted
    report = verify(model, again, wanted)
    assert report.identity == 0
    assert report.worst_block < 5e-6
    assert path.read_bytes() == before

    a, b = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    assert [(o.domain, o.version) for o in a.opset_import] == [(o.domain, o.version) for o in b.opset_import]
    assert [i.name for i in a.graph.input] == [i.name for i in b.graph.input]
    assert [(o.name, o.type) for o in a.graph.output] == [(o.name, o.type) for o in b.graph.output]
    onnx.checker.check_model(b, full_check=True)
    # Every node outside the blocks is there as it was; of a block, only pool and product are not.
    kept = {_written(n) for n in b.graph.node}
    changed = [n.op_type for n in a.graph.node if _written(n) not in kept]
    blocks_changed = len(plan) - _whole(wanted, again)
    assert changed.count("Mul") == blocks_changed
    assert len(changed) == 2 * blocks_changed
    assert set(changed) <= {"Mul", "GlobalAveragePool", "ReduceMean"}
    values = {w.name: w.SerializeToString() for w in b.graph.initializer}
    assert all(values.get(w.name) in (None, w.SerializeToString()) for w in a.graph.initializer)


def _written(node):
    attributes = tuple(sorted(a.name + str(onnx.helper.get_attribute_value(a)) for a in node.attribute))
    return node.op_type, node.name, tuple(node.input), tuple(node.output), attributes


def _whole(plan, converted):
    """Blocks that a tile covers whole in a file of fixed size: nothing had to change there."""
    fixed = isinstance(converted.ir.graph.inputs[0].shape[2], int)
    return sum(t.tiles(b.height, b.width) == 1 for b, t in plan) if fixed else 0


def test_costs_are_those_of_the_pytorch_network(shared, mobilenet):
    """The exporters folded the batch normalisations: one parameter a channel less, one addition an output more."""
    torch_plan = ts.find(mobilenet, (3, 224, 224)).with_tile("7xW")
    norms = [m for m in mobilenet.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    outputs = []
    hooks = [m.register_forward_hook(lambda m, i, o: outputs.append(o.numel())) for m in norms]
    with torch.no_grad():
        mobilenet(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    expected = cost(torch_plan)
    for name in ("tf_mobilenetv3_small_100_ts", "tf_mobilenetv3_small_100_dynamo"):
        got = cost(find(load(shared / "models" / f"{name}.onnx"), (3, 224, 224)).with_tile("7xW"))
        assert (got.se.buffer, got.tse.buffer) == (expected.se.buffer, expected.tse.buffer)
        assert got.tse.macs - got.se.macs == expected.tse.macs - expected.se.macs
        assert got.se.params == expected.se.params - sum(m.num_features for m in norms)
        assert got.se.macs == expected.se.macs + sum(outputs)
        fields = [(b.channels, b.reduced, b.height, b.width, b.excite_macs) for b in torch_plan.blocks]
        plan = find(load(shared / "models" / f"{name}.onnx"), (3, 224, 224))
        assert [(b.channels, b.reduced, b.height, b.width, b.excite_macs) for b in plan.blocks] == fields


def test_both_exports_and_pytorch_give_the_same_logits_with_tiles(shared, mobilenet):
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ts.convert(mobilenet, ts.find(mobilenet, (3, 224, 224)).with_tile("5xW"))(x)
    for name in ("tf_mobilenetv3_small_100_ts", "tf_mobilenetv3_small_100_dynamo"):
        model = load(shared / "models" / f"{name}.onnx")
        got = module(convert(model, find(model, (3, 224, 224)).with_tile("5xW")))(x)
        assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


def test_counting_names_what_it_cannot_count(shared):
    model = load(shared / "models" / "selfie_segmentation.onnx")
    from tiledse.onnx.constants import Constants
    from tiledse.onnx.shapes import shapes_of

    for node in model.ir.graph:
        if node.op_type == "Resize":
            node.domain = "somebody"
    shapes = shapes_of(load(model.path), (3, 64, 64))
    assert count(model, shapes, Constants(model.ir)).uncounted == ("somebody.Resize",)
