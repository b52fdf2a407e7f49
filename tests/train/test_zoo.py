"""The zoo: a network trained here goes in, comes out by name as it was, and nothing else comes out."""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tests.train.sets import RECIPE, class_folders, masked
from tests.train.test_parts import SEGMENT
from tiledse import TiledSEError
from tiledse.networks.loading import load
from tiledse.networks.zoo import catalogue, entries, open_network
from tiledse.networks.zoo.packing import LIMIT_BYTES, packed
from tiledse.train import publishing


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two rows of a small recipe, trained; (recipe, data, runs)."""
    folder = tmp_path_factory.mktemp("zoo")
    data = class_folders(folder / "data", train=24)
    text = RECIPE + '[[variant]]\nname = "b1"\ntile = "1xW"\nkernel = [3, 1]\nratio = 2\n'
    text += '[[variant]]\nname = "no"\ntile = "none"\n'
    (folder / "recipe.toml").write_text(text)
    done = tiledse(
        "train", folder / "recipe.toml", "--data", data, "-o", folder / "runs", "--device", "cpu",
        "--variant", "1xW", "--variant", "b1", "--variant", "no",
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder / "recipe.toml", data, folder / "runs" / "test_efficientnet"


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """An empty zoo in place of the package's."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    catalogue.write_index([], folder)
    monkeypatch.setattr(catalogue, "FOLDER", folder)
    return folder


def add(trained, zoo, row="1xW", name="colours", **more):
    recipe, data, runs = trained
    given = {"--recipe": recipe, "--data": data, "--trained-on": "72 colours", "--licence": "none", **more}
    words = [word for pair in given.items() for word in pair]
    return publishing.main(
        [str(runs / row / "seed0"), "--name", name, "--folder", str(zoo), *map(str, words)]
    )


def test_two_that_publish_at_once(trained, zoo, monkeypatch):
    """The index is read, changed and written by one at a time: neither loses the other's network."""
    write = publishing.write_index

    def slowly(listed, folder):
        time.sleep(0.3)
        write(listed, folder)

    monkeypatch.setattr(publishing, "write_index", slowly)
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda name: add(trained, zoo, name=name), ("first", "second")))
    assert codes == [0, 0]
    assert sorted(entry.name for entry in entries()) == ["first", "second"]


@pytest.mark.parametrize("row", ["1xW", "b1", "no"])
def test_in_and_out(trained, zoo, capsys, row):
    assert add(trained, zoo, row) == 0
    run = trained[2] / row / "seed0"
    result = json.loads((run / "result.json").read_text())
    printed = capsys.readouterr().out
    (entry,) = entries()
    assert (entry.name, entry.tile, entry.classes, entry.input, entry.epochs, entry.n) == (
        "colours", result["tile"], 3, "3x32x32", 3, 12,
    )  # fmt: skip
    assert (entry.data, entry.licence, entry.recipe) == ("72 colours", "none", "recipe.toml")
    assert entry.accuracy == pytest.approx(result["best_top1"], abs=8.4)  # float16 may turn one image of 12
    assert f"top1 {entry.accuracy:.2f} % on 12 images" in printed
    assert entry.params == result["params"]
    model, plan, same = open_network("colours")
    assert same == entry
    assert not model.training
    before, state = load_file(run / "best.safetensors"), load_file(entry.path)
    assert entry.path.stat().st_size < 0.75 * (run / "best.safetensors").stat().st_size
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert state[key].dtype == (torch.float16 if value.ndim >= 2 else torch.float32)
        torch.testing.assert_close(value, before[key], atol=1e-6, rtol=1e-3)
    assert {str(tile) for tile in plan.tiles} == (set() if row == "no" else {"1xW"})
    assert ts.find(model, (3, 32, 32)).tiles == plan.tiles


def test_a_model_for_the_other_verbs(trained, zoo, tmp_path):
    assert add(trained, zoo) == 0
    loaded = load("zoo:colours")
    assert (loaded.input_size, loaded.random) == ((3, 32, 32), False)
    x = torch.randn(2, 3, 32, 32)
    expected = open_network("colours")[0](x)
    assert torch.equal(loaded.model(x), expected)
    done = tiledse("find", "zoo:colours", "--json")
    assert done.code == 0, done.err
    assert {block["tile"] for block in json.loads(done.out)["blocks"]} == {"1xW"}
    out = tmp_path / "w.safetensors"
    done = tiledse("zoo", "colours", "-o", out)
    assert done.code == 0, done.err
    assert "trained on 72 colours; recipe recipe.toml, 3 epochs, seed 0" in done.out
    assert "licence: none" in done.out
    assert f"written to {out}" in done.out
    # As any weights: into the network by its own name, with the plan from the file.
    assert str(ts.Plan.load(out).tiles[0]) == "1xW"
    assert torch.equal(load_file(out)["conv_stem.weight"], loaded.model.state_dict()["conv_stem.weight"])
    assert_refused(tiledse("zoo", "colours", "-o", out), "exists", "--force")
    assert tiledse("zoo", "colours", "-o", out, "--force").code == 0
    done = tiledse("zoo")
    assert "colours" in done.out
    assert "1xW" in done.out
    listed = json.loads(tiledse("zoo", "--json").out)["networks"]
    assert [one["name"] for one in listed] == ["colours"]
    assert json.loads(tiledse("zoo", "colours", "--json").out)["sha256"] == listed[0]["sha256"]


def test_a_segmenter(zoo, tmp_path):
    data = masked(tmp_path / "data")
    recipe = tmp_path / "s.toml"
    recipe.write_text(SEGMENT.replace("epochs = 2", "epochs = 1").replace('as_is = ["1xW"]', ""))
    done = tiledse(
        "train", recipe, "--data", data, "-o", tmp_path / "runs", "--device", "cpu", "--variant", "se"
    )
    assert done.code == 0, done.err
    assert add((recipe, data, tmp_path / "runs" / "mobilenetv3_small_050"), zoo, "se", "masks") == 0
    model, plan, entry = open_network("masks")
    assert (entry.task, entry.metric, entry.n, entry.stride) == ("segment", "mIoU", 8, 16)
    assert model(torch.randn(1, 3, 48, 64))["out"].shape == (1, 2, 48, 64)
    assert len(plan) == 9


def test_another_file_is_refused(trained, zoo):
    assert add(trained, zoo) == 0
    (entry,) = entries()
    state = load_file(entry.path)
    good = entry.path.read_bytes()
    save_file({**state, "classifier.bias": state["classifier.bias"] + 1}, entry.path)
    assert_refused(
        tiledse("find", "zoo:colours"), "damaged or another file", "SHA-256", "install tiledse again"
    )
    entry.path.write_bytes(good[:-1])
    assert_refused(tiledse("find", "zoo:colours"), "damaged or another file")
    entry.path.unlink()
    assert_refused(tiledse("find", "zoo:colours"), "cannot read", "install tiledse again")
    assert "missing" in tiledse("zoo").out
    entry.path.write_bytes(good)
    assert tiledse("find", "zoo:colours").code == 0
    (zoo / "index.json").write_text('{"format": "tiledse.zoo/9", "networks": []}')
    assert_refused(tiledse("zoo"), "format 'tiledse.zoo/9'", "expected tiledse.zoo/1")
    (zoo / "index.json").write_text('{"format": "tiledse.zoo/1", "networks": [{"name": "x"}]}')
    assert_refused(tiledse("zoo"), "is damaged")


def test_wrong_use(trained, zoo, tmp_path, capsys):
    assert_refused(tiledse("find", "zoo:colours"), "no network 'colours'", "none yet")
    assert add(trained, zoo) == 0
    assert_refused(tiledse("find", "zoo:colour"), "did you mean colours?")
    assert_refused(tiledse("find", "zoo:colours", "--pretrained"), "leave --pretrained out")
    assert_refused(tiledse("find", "zoo:colours", "--input", "1x32x32"), "3 channels, not 1")
    assert_refused(tiledse("zoo", "-o", tmp_path / "w.safetensors"), "give its name")
    assert_refused(tiledse("zoo", "colours", "-o", tmp_path / "w.pt"), ".safetensors")
    before = sorted((p.name, p.read_bytes()) for p in zoo.iterdir())
    capsys.readouterr()
    recipe, data, _ = trained
    empty = tmp_path / "empty"
    (empty / "1xW" / "seed0").mkdir(parents=True)
    for given, said in (
        ({"--figure": "top1=3"}, "give the recipe's --data, or"),
        ({"--set": "task=distill"}, "has no labels to measure by"),
        ({"trained": (recipe, data, empty)}, "no finished run: no result.json"),
        ({"--set": "variant=[{name='se'}]"}, "the recipe has no such row"),
        ({"--set": "classes=4"}, "do not fit the network"),
        ({"name": "a b"}, "no name for the zoo"),
        ({"--data": tmp_path / "none"}, "there is no such folder"),
        ({"--recipe": tmp_path / "none.toml"}, "cannot read recipe"),
    ):
        given = dict(given)
        assert add(given.pop("trained", trained), zoo, **given) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
    assert sorted((p.name, p.read_bytes()) for p in zoo.iterdir()) == before


def test_a_distilled_network(trained, zoo, capsys):
    """No labels in its recipe: it takes the figure that `tiledse eval` gave."""
    recipe, _, runs = trained
    words = ["--name", "taught", "--recipe", recipe, "--set", "task=distill", "--folder", zoo]
    words += ["--trained-on", "colours without names", "--licence", "none", "--figure", "top1=66.67"]
    words = [str(runs / "1xW" / "seed0"), *map(str, words)]
    assert publishing.main(words) == 2
    assert "--figure and --n" in capsys.readouterr().err
    assert publishing.main([*words, "--n", "12"]) == 0
    (entry,) = entries()
    assert (entry.task, entry.metric, entry.accuracy, entry.n) == ("classify", "top1", 66.67, 12)
    assert publishing.main([*words, "--n", "12", "--figure", "top5=high"]) == 2
    assert "expected a number" in capsys.readouterr().err


def test_it_stays_small(trained, zoo, monkeypatch, capsys):
    monkeypatch.setattr(publishing, "LIMIT_BYTES", 300_000)
    assert add(trained, zoo) == 0
    assert add(trained, zoo) == 0  # the same name takes its place
    assert add(trained, zoo, "b1", "more") == 2
    assert "it is to stay under 300,000" in capsys.readouterr().err
    assert [entry.name for entry in entries()] == ["colours"]
    assert not (zoo / "more.safetensors").exists()


def test_weights_beyond_float16():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(TiledSEError, match=r"'weight' is not finite in torch.float16"):
        packed(layer)


def test_the_zoo_of_the_package():
    """What is shipped: hashes, sizes, and that each opens."""
    listed = entries()
    assert sum(entry.path.stat().st_size for entry in listed) <= LIMIT_BYTES
    for entry in listed:
        assert hashlib.sha256(entry.path.read_bytes()).hexdigest() == entry.sha256
        assert entry.licence
        assert entry.data
        model, plan, _ = open_network(entry.name)
        assert sum(p.numel() for p in model.parameters()) == entry.params
        assert {str(tile) for tile in plan.tiles} <= {entry.tile}
