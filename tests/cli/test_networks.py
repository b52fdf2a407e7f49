"""find, plan, cost, convert: what they print and write, and wrong use."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import tiledse as ts
from tests.cli.running import assert_refused, tiledse

MODEL = "timm:lcnet_050"
SIZE = ("--input", "3x64x64")


def test_find_as_json():
    done = tiledse("find", MODEL, *SIZE, "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert found["model"] == MODEL
    assert found["input"] == [3, 64, 64]
    keys = ["name", "channels", "reduced", "height", "width", "dialect", "tile"]
    assert [list(block) for block in found["blocks"]] == [keys] * 2
    assert found["near_misses"][0].keys() == {"name", "reason"}


def test_find_as_text():
    done = tiledse("find", MODEL, *SIZE)
    assert "2 SE blocks" in done.out
    assert "rows and columns of the map" in done.out
    assert "global_pool: what it pools is not multiplied back" in done.out


def test_plan_cost_convert(tmp_path):
    plan = tmp_path / "plan.json"
    done = tiledse(
        "plan", MODEL, *SIZE, "--first", 1, "--tile", "3xW", "--set", "blocks.5.1.se=1xW", "-o", plan
    )
    assert done.code == 0, done.err
    assert [str(tile) for tile in ts.Plan.load(plan).tiles] == ["3xW", "1xW"]

    done = tiledse("cost", MODEL, *SIZE, "--plan", plan, "--json")
    cost = json.loads(done.out)
    assert cost["se"].keys() >= {"params", "macs", "buffer"}
    assert cost["tse"].keys() >= {"params", "macs", "buffer", "buffer_row_order"}
    needed = {
        "name",
        "channels",
        "height",
        "width",
        "tile",
        "tiles",
        "se_buffer",
        "buffer",
        "se_macs",
        "macs",
    }
    assert all(block.keys() >= needed for block in cost["blocks"])

    output = tmp_path / "tse.safetensors"
    done = tiledse("convert", MODEL, *SIZE, "--plan", plan, "-o", output, "--json")
    converted = json.loads(done.out)
    assert (converted["converted"], converted["total"], converted["output"]) == (2, 2, str(output))
    assert converted["max_abs_diff_identity"] < 1e-5
    assert converted["refused"] == []
    assert converted["verify_s"] > 0
    assert "weights are random" in done.err

    # The file holds all that is needed: weights that load strictly, and the plan.
    model = timm.create_model("lcnet_050")
    model.load_state_dict(load_file(output), strict=True)
    tse = ts.convert(model, ts.Plan.load(output))
    assert [str(tile) for tile in ts.find(tse, (3, 64, 64)).tiles] == ["3xW", "1xW"]
    again = tiledse("cost", MODEL, *SIZE, "--plan", output, "--weights", output, "--json")
    assert json.loads(again.out) == cost


def test_a_block_that_is_refused_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "twonet.py").write_text(
        "import timm, torch\n"
        "from torch import nn\n"
        "class Odd(timm.layers.SEModule):\n"
        "    def forward(self, x):\n"
        "        z = x.amax((2, 3), keepdim=True) if self.training else x.mean((2, 3), keepdim=True)\n"
        "        return x * self.gate(self.fc2(self.act(self.fc1(z))))\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), timm.layers.SEModule(8), Odd(8)).eval()\n"
    )
    monkeypatch.chdir(tmp_path)
    convert = ("convert", "twonet:build", "--input", "3x12x10", "--tile", "3xW")
    done = tiledse(*convert, "-o", "out.safetensors", "--json")
    made = json.loads(done.out)
    assert (made["converted"], made["total"]) == (1, 2)
    assert [refused["name"] for refused in made["refused"]] == ["2"]
    assert "in training it gives other numbers" in made["refused"][0]["reason"]
    assert "of the largest)" in made["refused"][0]["reason"]
    assert [str(tile) for tile in ts.Plan.load("out.safetensors").tiles] == ["3xW", "HxW"]
    done = tiledse(*convert, "-o", "text.safetensors")
    assert "1 of 2 SE blocks have tiles now" in done.out
    assert "block '2' was left as it was: in training it gives other numbers" in done.out
    assert "verified in " in done.out
    done = tiledse(*convert, "-o", "unverified.safetensors", "--no-verify", "--json")
    made = json.loads(done.out)
    assert (made["converted"], made["refused"], made["verify_s"]) == (2, [], None)
    assert made["max_abs_diff_identity"] is None


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "tiledse", "--help"], capture_output=True, text=True, check=True
    )
    for verb in ("find", "plan", "cost", "convert"):
        assert f"  {verb} " in done.stdout


def test_importing_it_loads_torch_and_nothing_heavier():
    code = (
        "import sys, tiledse; heavy = {'timm', 'torchvision', 'onnx', 'onnxruntime', 'matplotlib', 'scipy', "
        "'effdet', 'typer', 'rich'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_factory_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "import timm\ndef build():\n    return timm.create_model('lcnet_050')\ndef wrong():\n    return 3\n"
        "def fails():\n    raise OSError('no camera')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert tiledse("find", "mynet:build", *SIZE).code == 0
    assert_refused(
        tiledse("find", "mynet:build"), "does not say what it takes", "--input", "of sound 80x1000"
    )
    assert_refused(tiledse("find", "mynet:wrong", *SIZE), "gave a int", "expected a torch.nn.Module")
    assert_refused(tiledse("find", "mynet:fails", *SIZE), "mynet:fails() failed: OSError: no camera")
    assert_refused(tiledse("find", "mynet:absent", *SIZE), "cannot import 'mynet:absent'")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("find", "timm:regnety_02"), ("timm has no model 'regnety_02'", "did you mean", "regnety_002")),
        (("find", "torchvision:nope"), ("torchvision has no model 'nope'",)),
        (("find", "effdet:efficientdet_d9x"), ("effdet has no model",)),
        (("find", "regnety_002"), ("no model 'regnety_002'; expected timm:NAME",)),
        (("find", "no.such.module:build"), ("cannot import",)),
        (("find", MODEL, "--input", "3x64"), ("fails on an input of 3x64", "give the CxHxW that it takes")),
        (("find", MODEL, "--input", "4x64x64"), ("the network fails on an input of 4x64x64",)),
        (("find", MODEL, "--input", "3x0x64"), ("expected CxHxW",)),
        (("find", MODEL, "--weights", "none.pth"), ("no weights file none.pth",)),
        (("find", MODEL, "--weights", "a", "--pretrained"), ("give one of them",)),
        (("cost", MODEL, *SIZE), ("either with --tile T or with --plan FILE",)),
        (("cost", MODEL, *SIZE, "--tile", "0xW"), ("sides of at least 1, got 0",)),
        (("cost", MODEL, *SIZE, "--tile", "7x"), ("no tile: '7x'",)),
        (("cost", MODEL, *SIZE, "--plan", "none.json"), ("cannot read plan none.json",)),
        (("cost", "timm:resnet18", *SIZE, "--tile", "7xW"), ("no squeeze-and-excite block", "near misses")),
        (("plan", MODEL, *SIZE, "-o", "p.json", "--set", "zz=7xW"), ("no block matches 'zz'",)),
        (("plan", MODEL, *SIZE, "-o", "p.json", "--set", "zz"), ("expected GLOB=T",)),
        (("plan", MODEL, *SIZE, "-o", "p.json", "--first", "9"), ("expected 1 to 2",)),
        (("plan", MODEL, *SIZE, "-o", "no/p.json"), ("there is no folder no",)),
        (("plan", MODEL, *SIZE), ("Missing option", "--help")),
        (("convert", MODEL, *SIZE, "--tile", "7xW", "-o", "out.bin"), (".safetensors",)),
        (("find",), ("Missing argument 'MODEL'",)),
        (("found", MODEL), ("No such command", "found")),
        (("find", MODEL, "--tiles", "7xW"), ("No such option",)),
    ],
)
def test_wrong_use(arguments, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(tiledse(*arguments), *parts)
    assert os.listdir(tmp_path) == [], "nothing half-written"


def test_outputs_are_not_overwritten_unasked(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("mine")
    assert_refused(tiledse("plan", MODEL, *SIZE, "-o", path), "exists; give --force")
    weights = tmp_path / "tse.safetensors"
    weights.write_text("mine")
    assert_refused(tiledse("convert", MODEL, *SIZE, "--tile", "7xW", "-o", weights), "exists; give --force")
    assert (path.read_text(), weights.read_text()) == ("mine", "mine")
    assert tiledse("plan", MODEL, *SIZE, "-o", path, "--force").code == 0
    assert len(ts.Plan.load(path)) == 2


def test_a_plan_for_another_network_or_size(tmp_path):
    path = tmp_path / "p.json"
    tiledse("plan", MODEL, *SIZE, "-o", path)
    assert_refused(
        tiledse("cost", MODEL, "--input", "3x96x96", "--plan", path), "made for input 3x64x64", "3x96x96"
    )
    assert_refused(tiledse("cost", "timm:regnety_002", *SIZE, "--plan", path), "made for another network")


class Evil:
    """A pickle that would run code when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_weights_that_do_not_fit_or_are_not_safe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = timm.create_model("lcnet_050").state_dict()
    name = next(iter(state))

    def refused(weights, *parts):
        assert_refused(tiledse("find", MODEL, *SIZE, "--weights", weights), *parts)

    save_file({k: v for k, v in state.items() if k != name}, "less.safetensors")
    refused("less.safetensors", "do not fit the network", f"'{name}' is not in the file", "1 missing")
    save_file({**state, "more": torch.zeros(1)}, "more.safetensors")
    refused("more.safetensors", "the network has no 'more'")
    save_file({**state, name: torch.zeros(2)}, "shape.safetensors")
    refused("shape.safetensors", "is (2,) in the file")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, "good.pth")
    assert tiledse("find", MODEL, *SIZE, "--weights", "good.pth").code == 0
    whole = (tmp_path / "good.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refused("cut.pth", "cannot read weights cut.pth")
    whole = (tmp_path / "less.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("cut.safetensors", "cannot read weights cut.safetensors")
    (tmp_path / "text.pth").write_text("hello")
    refused("text.pth", "cannot read weights text.pth")
    torch.save({"state_dict": state, "evil": Evil()}, "evil.pth")
    refused("evil.pth", "it holds Python objects beside tensors, which are never loaded")
    assert not (tmp_path / "pwned").exists()
    torch.save([1, 2], "list.pth")
    refused("list.pth", "holds no state dict")


def test_no_hub(monkeypatch):
    """A hub that does not answer is one line; the client's own retries are not waited for here."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("cannot reach the hub\nlong story")

    monkeypatch.setattr(timm, "create_model", fail)
    done = tiledse("find", MODEL, *SIZE, "--pretrained")
    assert_refused(done, "no pretrained weights for timm:lcnet_050", "is the hub reachable?", "--weights")


def test_a_full_disk(tmp_path):
    """A limit on the size of files stands in for a full disk, in a process of its own."""
    code = (
        "import resource, signal, sys; from tiledse.cli import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        f"sys.exit(main(['convert', '{MODEL}', '--input', '3x64x64', '--tile', '7xW', '-o', 'o.safetensors']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("tiledse: cannot write o.safetensors: ")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_effdet_at_its_own_size_and_another():
    pytest.importorskip("effdet")
    done = tiledse("cost", "effdet:efficientdet_d0", "--tile", "7xW", "--json")
    assert json.loads(done.out)["input"] == [3, 512, 512]
    done = tiledse("cost", "effdet:efficientdet_d0", "--tile", "7xW", "--input", "3x256x384", "--json")
    assert json.loads(done.out)["blocks"][0]["width"] == 192
