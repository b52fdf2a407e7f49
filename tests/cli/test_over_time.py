"""Sound and clips on the command line: what takes images only says so; a plan says the size that it was made for."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

import tiledse as ts
from tests.cli.running import assert_refused, tiledse

NETWORKS = """
from torch import nn
from tests.networks.over_time import PoolSE, VolumeSE

def sound():
    return nn.Sequential(nn.Conv1d(8, 16, 3, padding=1), PoolSE(16, 4), nn.Conv1d(16, 5, 1))

def clip():
    return nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), VolumeSE(8, 4), nn.AdaptiveAvgPool3d(1), nn.Flatten())
"""
SOUND = ("timenets:sound", "--input", "8x64")
CLIP = ("timenets:clip", "--input", "3x4x8x8")
IMAGES_ONLY = [
    ("search", "--max-drop", 1, "--data", "images", "-o", "p.json"),
    ("search", "--max-buffer", 100, "--data", "images", "-o", "p.json"),
    ("calibrate", "--tile", "HxW", "--data", "images", "-o", "p.json"),
    ("sensitivity", "--tiles", "HxW", "--data", "images"),
    ("correlate", "--tile", "HxW", "--data", "images"),
    ("eval", "--tile", "HxW", "--data", "images"),
    ("eval", "--tile", "HxW", "--data", "images", "--frames"),
    ("sweep", "--tiles", "HxW", "--data", "images", "-o", "sweep.csv"),
    ("report", "-o", "page.html"),
    ("report", "--data", "images", "-o", "page.html"),
    ("simulate", "--tile", "HxW"),
    ("advise", "--target", "hailo"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the networks, and two images with labels."""
    (tmp_path / "timenets.py").write_text(NETWORKS)
    (tmp_path / "images").mkdir()
    for name in ("0", "1"):
        Image.new("RGB", (16, 16), (90, int(name) * 90, 30)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "labels.csv").write_text("file,label\n0.png,0\n1.png,1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("network", "said"), [(SOUND, "8x64, (C, T)"), (CLIP, "3x4x8x8, (C, D, H, W)")])
@pytest.mark.parametrize("verb", IMAGES_ONLY, ids=lambda verb: " ".join(map(str, verb)))
def test_what_takes_images_only_says_so(folder, network, said, verb):
    before = sorted(os.listdir(folder))
    done = tiledse(verb[0], *network, *verb[1:])
    assert_refused(done, f"this takes images (C, H, W), but the network's input is {said}", "docs/time.md")
    assert [f for f in sorted(os.listdir(folder)) if f != "__pycache__"] == before, "nothing half-written"


@pytest.mark.parametrize(
    ("network", "tile", "form"),
    [(SOUND, "7xW", "write 7xT"), (SOUND, "4xHxW", "write 4xT"), (CLIP, "8xT", "write 8xHxW")],
)
@pytest.mark.parametrize("verb", ["cost", "stream", "convert"])
def test_a_tile_for_other_maps_is_told_the_form_for_these(folder, verb, network, tile, form):
    output = ("-o", "out.safetensors") if verb == "convert" else ()
    assert_refused(tiledse(verb, *network, "--tile", tile, *output), form)


@pytest.mark.parametrize("verb", ["cost", "convert"])
def test_the_previous_frame_is_of_images(folder, verb):
    output = ("-o", "out.safetensors") if verb == "convert" else ()
    done = tiledse(verb, *SOUND, "--tile", "T:previous", *output)
    assert_refused(done, "frames that come to a network for images", "for maps (C, T) write 1xT:running")


def test_a_plan_says_the_size(folder):
    plan = ("--plan", "plan.json")
    assert tiledse("plan", *SOUND, "--tile", "8xT", "-o", "plan.json").code == 0
    assert_refused(tiledse("cost", SOUND[0], "--tile", "8xT"), "does not say what it takes", "--input")
    assert json.loads(tiledse("cost", SOUND[0], *plan, "--json").out)["tse"]["buffer"] == 8 * 16
    assert json.loads(tiledse("stream", SOUND[0], *plan, "--json").out)["max_rel_error"] < 1e-5
    assert tiledse("convert", SOUND[0], *plan, "-o", "made.safetensors").code == 0
    assert str(ts.Plan.load("made.safetensors").tiles[0]) == "8xT"
    done = tiledse("correlate", SOUND[0], *plan, "--data", "images")
    assert_refused(done, "the network's input is 8x64, (C, T)")
    # Another size than the plan's is wrong, whether it is typed or the network's own.
    assert_refused(tiledse("cost", SOUND[0], "--input", "8x32", *plan), "made for input 8x64", "8x32")
    done = tiledse("cost", CLIP[0], *plan)
    assert_refused(done, "fails on an input of 8x64", "(the input of plan.json is 8x64)")


def test_a_plan_for_images_of_another_size_than_the_network_s_own(folder):
    assert (
        tiledse("plan", "timm:lcnet_050", "--input", "3x64x64", "--tile", "3xW", "-o", "plan.json").code == 0
    )
    done = tiledse("cost", "timm:lcnet_050", "--plan", "plan.json", "--json")
    assert [(b["height"], b["width"]) for b in json.loads(done.out)["blocks"]] == [(2, 2), (2, 2)]


def test_cost_calls_what_it_counts_by_its_name(folder):
    sound, clip = (tiledse("cost", *network, "--tile", "HxW").out for network in (SOUND, CLIP))
    assert "map CxT" in sound
    assert "one sound" in sound
    assert "map CxDxHxW" in clip
    assert "one clip" in clip


def test_a_sound_the_wrong_way_round(folder):
    np.save("frames.npy", np.zeros((64, 8), np.float32))
    done = tiledse("stream", *SOUND, "frames.npy", "--tile", "1xT:running")
    assert_refused(done, "(C, T)", "(64, 8)")
