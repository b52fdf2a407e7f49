"""Networks whose weights are no numbers: every verb that takes a network refuses them when it is loaded."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import types

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.cli.running import assert_refused, tiledse
from tests.train.sets import RECIPE, class_folders
from tiledse.networks.zoo import catalogue

VERBS = {
    "find": (),
    "plan": ("--tile", "3xW", "-o", "{}/p.json"),
    "cost": ("--tile", "3xW"),
    "convert": ("--tile", "3xW", "-o", "{}/w.safetensors"),
    "eval": ("--tile", "3xW", "--data", "{}/data/val"),
    "sweep": ("--tiles", "3xW", "--data", "{}/data/val", "-o", "{}/s.csv"),
    "correlate": ("--tile", "3xW", "--data", "{}/data/val"),
    "sensitivity": ("--tiles", "3xW", "--data", "{}/data/val"),
    "calibrate": ("--tile", "3xW", "--data", "{}/data/val", "-o", "{}/p.json"),
    "search": ("--max-buffer", "1000", "--data", "{}/data/val", "-o", "{}/p.json"),
    "stream": ("--tile", "3xW"),
    "simulate": ("--tile", "3xW"),
    "finetune": (
        "--tile",
        "3xW",
        "--data",
        "{}/data",
        "-o",
        "{}/runs",
        "--weights",
        "{}/w.pt",
        "--set",
        "classes=3",
    ),
}


def with_odd(number: float, path: str = "blocks.5.0.se.conv_reduce.bias") -> nn.Module:
    model = timm.create_model("lcnet_050")
    model.state_dict()[path].view(-1)[0] = number
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    class_folders(folder / "data")
    torch.save(with_odd(math.nan).state_dict(), folder / "w.pt")
    (folder / "recipe.toml").write_text(RECIPE.replace("test_efficientnet", "lcnet_050"))
    return folder


@pytest.fixture
def made(monkeypatch):
    """A module of factories, as a user's own."""
    module = types.ModuleType("oddnets")
    monkeypatch.setitem(sys.modules, "oddnets", module)
    return module


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_factorys_odd_weights(folder, made, verb):
    made.net = lambda: with_odd(math.nan)
    words = [word.format(folder) for word in VERBS[verb]]
    size = () if verb == "finetune" else ("--input", "3x64x64")
    done = tiledse(verb, "oddnets:net", *size, *words)
    assert (done.code, done.out) == (2, ""), done
    # Training says beforehand what was changed of its recipe.
    *others, last = done.err.splitlines()
    assert len(others) == (verb == "finetune")
    assert last.startswith(
        "tiledse: the weights of oddnets:net are no use: 'blocks.5.0.se.conv_reduce.bias' holds"
    )


@pytest.mark.parametrize(
    ("number", "path", "message"),
    [
        (math.inf, "blocks.5.1.se.conv_expand.weight", "numbers that are not finite"),
        (-math.inf, "conv_stem.weight", "numbers that are not finite"),
        (math.inf, "bn1.running_var", "numbers that are not finite"),
        (math.nan, "bn1.running_mean", "numbers that are not finite"),
    ],
)
def test_every_kind_of_number(made, number, path, message):
    made.net = lambda: with_odd(number, path)
    assert_refused(tiledse("find", "oddnets:net", "--input", "3x64x64"), f"'{path}' holds {message}")


def test_weights_that_are_not_there(made):
    def net():
        with torch.device("meta"):
            return timm.create_model("lcnet_050")

    made.net = net
    done = tiledse("eval", "oddnets:net", "--input", "3x64x64", "--tile", "3xW", "--data", ".")
    assert_refused(done, "'conv_stem.weight' is sparse, quantised or without numbers")
    for verb in ("find", "cost", "simulate"):  # they only look at it
        words = () if verb == "find" else ("--tile", "3xW")
        done = tiledse(verb, "oddnets:net", "--input", "3x64x64", *words)
        assert done.code == 0, done.err


def test_masks_may_be_infinite(made):
    def net():
        model = timm.create_model("lcnet_050")
        model.register_buffer("mask", torch.full((2, 2), -math.inf))
        return model

    made.net = net
    assert tiledse("find", "oddnets:net", "--input", "3x64x64").code == 0


def test_the_hubs(monkeypatch):
    odd = with_odd(math.nan)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: odd)
    done = tiledse("cost", "timm:lcnet_050", "--tile", "3xW", "--pretrained")
    assert_refused(done, "the weights of timm:lcnet_050 are no use")


def test_the_zoo(tmp_path, monkeypatch):
    """An index that agrees with a file of odd weights."""
    folder = tmp_path / "zoo"
    shutil.copytree(catalogue.FOLDER, folder, ignore=lambda *_: ["__pycache__"])
    monkeypatch.setattr(catalogue, "FOLDER", folder)
    file = folder / "camvid-se.safetensors"
    state = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    key = next(key for key in state if key.endswith("bias"))
    state[key][0] = math.nan
    save_file(state, file, metadata)
    index = json.loads((folder / "index.json").read_text())
    for entry in index["networks"]:
        entry["sha256"] = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    done = tiledse("find", "zoo:camvid-se")
    assert_refused(done, f"camvid-se.safetensors are no use: '{key}' holds numbers that are not finite")


def test_training_begins_with_sound_weights(folder, tmp_path):
    words = ["--data", folder / "data", "-o", tmp_path, "--weights", folder / "w.pt", "--device", "cpu"]
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('name = "se"', 'name = "se"\nstart = "weights"'))
    done = tiledse("train", recipe, *words, "--variant", "se")
    assert_refused(
        done, "w.pt are no use: 'blocks.5.0.se.conv_reduce.bias' holds numbers that are not finite"
    )


@pytest.mark.parametrize("verb", ["calibrate", "search"])
def test_sound_weights_that_overflow(tmp_path, made, verb):
    """Finite, and so large that the maps are not: no correction and no plan comes of that."""
    torch.manual_seed(0)
    model = timm.create_model("lcnet_050").eval()
    model.conv_stem.weight.data *= 1e30
    model.blocks[0][0].conv_pw.weight.data *= 1e30
    made.net = lambda: model
    data = class_folders(tmp_path / "data", val=14) / "val"
    words = {
        "calibrate": ("--tile", "1xW"),
        "search": ("--max-buffer", "1000"),
    }[verb]
    done = tiledse(
        verb, "oddnets:net", "--input", "3x64x64", *words, "--data", data, "-o", tmp_path / "p.json"
    )
    assert done.code == 2
    assert "not finite" in done.err.splitlines()[-1]
    assert not (tmp_path / "p.json").exists()
