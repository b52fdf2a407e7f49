"""FILE.onnx through the real command line, and PyTorch networks that go out as ONNX."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import onnx
import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tiledse.demo import count_right, draw_page, run_demo
from tiledse.onnx import find, load

from .graphs import se_net


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(se_net("mean", "gemm", free=(True, True, True)), path)
    return path


def test_find_plan_cost_convert(file, tmp_path):
    size = ("--input", "3x20x16")
    found = json.loads(tiledse("find", file, *size, "--json").out)
    assert found["blocks"][0] == {
        "name": "pool", "channels": 6, "reduced": 4, "height": 20, "width": 16, "dialect": "onnx.SE", "tile": "HxW",
    }  # fmt: skip
    plan, out, alls = (tmp_path / name for name in ("plan.json", "out.onnx", "out.alls"))
    assert tiledse("plan", file, *size, "--tile", "5xW", "-o", plan).code == 0
    cost = json.loads(tiledse("cost", file, *size, "--plan", plan, "--json").out)
    assert (cost["se"]["buffer"], cost["tse"]["buffer"]) == (20 * 16 * 6, 5 * 16 * 6)
    done = tiledse("convert", file, *size, "--plan", plan, "-o", out, "--alls", alls, "--json")
    told = json.loads(done.out)
    assert (told["converted"], told["total"], told["output"]) == (1, 1, str(out))
    assert told["max_abs_diff_identity"] < 1e-5
    assert told["max_rel_diff_blocks"] < 1e-6
    assert told["operators"]["before"]["Gemm"] == 2
    assert told["operators"]["after"].get("Gemm") is None
    assert alls.read_text("utf-8").endswith("mode=sequential, count=1, tile_height=5)\n")
    assert find(load(out), (3, 20, 16)) == ts.Plan.load(plan)


def test_divisor_tiles(file, tmp_path):
    done = tiledse(
        "convert",
        file,
        "--input",
        "3x20x16",
        "--tile",
        "7xW",
        "--divisor-tiles",
        "-o",
        tmp_path / "o.onnx",
        "--json",
    )
    assert json.loads(done.out)["tiles"] == {"pool": "5xW"}
    ragged = ("--input", "3x20x16", "--tile", "7xW", "-o", tmp_path / "p.onnx", "--alls", tmp_path / "p.alls")
    assert_refused(tiledse("convert", file, *ragged), "do not fill evenly", "--divisor-tiles")
    assert not (tmp_path / "p.onnx").exists()


def test_eval(tmp_path):
    path = tmp_path / "net.onnx"
    proto = se_net(size=(16, 16))
    graph = proto.graph
    graph.node.append(
        onnx.helper.make_node("GlobalAveragePool", [graph.output[0].name], ["pooled"], name="last")
    )
    graph.node.append(onnx.helper.make_node("Flatten", ["pooled"], ["logits"]))
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("logits", 1, ["N", 5]))
    onnx.save(proto, path)
    for i, name in enumerate(("red", "green", "blue")):
        Image.new("RGB", (16, 16), name).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,0\n1.png,1\n2.png,4\n")
    arguments = ("eval", path, "--tile", "4xW", "--data", tmp_path, "--preprocess", "crop")
    done = tiledse(*arguments, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--json")
    assert json.loads(done.out)["n"] == 3, done.err
    assert_refused(tiledse(*arguments, "--mean", "half"), "no numbers: --mean 'half'")
    assert_refused(tiledse(*arguments, "--amp", "bfloat16"), "leave --amp out")


@pytest.mark.slow  # test_opening writes a PyTorch network as ONNX
def test_a_pytorch_network_goes_out_with_the_same_costs(tmp_path):
    out = tmp_path / "lcnet.onnx"
    model = ("timm:lcnet_050", "--input", "3x64x64")
    done = tiledse("convert", *model, "--tile", "3xW", "-o", out, "--json")
    told = json.loads(done.out)
    assert told["max_rel_diff_torch"] < 1e-5
    assert told["max_rel_diff_blocks"] < 1e-5
    ours, theirs = (json.loads(tiledse("cost", *m, "--tile", "3xW", "--json").out) for m in (model, (out,)))
    assert ours["se"] == theirs["se"]
    assert ours["tse"] == theirs["tse"]


def test_pages_of_the_demo_are_read_by_what_is_on_them():
    page = draw_page(0)
    from tiledse.demo import Reading

    boxes = tuple(((a, b), (c, b), (c, d), (a, d)) for _, (a, b, c, d) in page.lines)
    texts = [text for text, _ in page.lines]
    whole = sum(len(text.replace(" ", "")) for text in texts)
    assert count_right(page, Reading(boxes, tuple(texts))) == whole
    assert count_right(page, Reading(boxes, ("?" + texts[0][1:], *texts[1:]))) == whole - 1
    assert count_right(page, Reading((), ())) == 0


@pytest.mark.slow
def test_demo(tmp_path):
    pytest.importorskip("rapidocr")
    result = run_demo(tmp_path, pages=1)
    assert result.blocks == 13
    assert result.buffer[1] < result.buffer[0] / 20
    assert result.right[0] > result.characters / 2
    assert result.right[1] > 0.95 * result.right[0]
    assert {p.name for p in tmp_path.iterdir()} == {"pp-ocrv6_det_tse.onnx", "pages.png"}
