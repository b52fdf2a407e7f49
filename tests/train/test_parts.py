"""What stands around the loop: networks of variants, folded normalisation, distillation, segmentation."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tests.train.sets import class_folders, masked
from tiledse import TiledSEError
from tiledse.networks.building import build_classifier, with_excitation
from tiledse.networks.finder import find
from tiledse.networks.segmenter import build_segmenter
from tiledse.train.distillation import divergence
from tiledse.train.normalisation import restore_statistics
from tiledse.train.sections import Variant
from tiledse.train.variants import load_fitting, with_variant

SIZE = (3, 64, 64)


@pytest.mark.parametrize(
    ("tile", "kernel", "ratio", "printed"),
    [
        ("HxW", None, None, 6.2),
        ("1xW", (1, 1), 2, 7.08),
        ("1xW", (3, 1), 4, 7.8),
        ("1xW", (3, 1), 2, 10.3),
        ("1x1", (3, 3), 2, 20.17),
    ],
)
def test_parameters_of_table_b1(tile, kernel, ratio, printed):
    """The paper truncates; checked.md has all of them follow from the block's input width."""
    with torch.device("meta"):
        model = timm.create_model("regnety_008")
    if kernel is not None:
        model = with_excitation(model, tile, (3, 224, 224), kernel, ratio)
    params = sum(p.numel() for p in model.parameters())
    digits = len(str(printed).partition(".")[2])
    assert math.floor(params / 1e6 * 10**digits) / 10**digits == printed


class Own(torch.nn.Module):
    """SE whose forward spells its activation and gate: SiLU and hard sigmoid, no layers that could be copied."""

    def __init__(self):
        super().__init__()
        self.down, self.up = torch.nn.Conv2d(8, 4, 1), torch.nn.Conv2d(4, 8, 1)

    def forward(self, x):
        z = torch.nn.functional.silu(self.down(x.mean((2, 3), keepdim=True)))
        return x * torch.nn.functional.hardsigmoid(self.up(z))


def test_excitation_in_place_of_a_block_that_does_not_say_its_functions():
    """ReLU and sigmoid would be other functions than the network's own."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), Own())
    message = r"a block of .*\.Own \(traced\) computes its gates in its own forward, .*; register a dialect"
    with pytest.raises(ts.TiledSEError, match=message):
        with_excitation(model, "3xW", (3, 12, 12))


def test_excitation_of_one_kernel_is_the_networks_own():
    """Kernel 1x1 and ratio 4 with the weights of the SE blocks: the function of the converted network."""
    torch.manual_seed(0)
    model = timm.create_model("regnety_002").eval()
    built = with_excitation(model, "3xW", SIZE, (1, 1), 4).eval()
    for block in find(model, SIZE).blocks:
        old, new = model.get_submodule(block.name), built.get_submodule(block.name)
        for layer in ("fc1", "fc2"):
            getattr(new, layer).load_state_dict(getattr(old, layer).state_dict())
    tse = ts.convert(model, find(model, SIZE).with_tile("3xW"))
    x = torch.randn(2, *SIZE)
    torch.testing.assert_close(built(x), tse(x))
    assert [str(t) for t in find(built, SIZE).tiles] == ["3xW"] * 13


@pytest.mark.parametrize("name", ["none", "HxW", "1xW", "7xW:upper", "7xW:middle", "3x3", "2xW:running"])
def test_variants(name):
    model = timm.create_model("test_efficientnet", num_classes=3)
    changed, plan = with_variant(model, Variant("row", name), (3, 32, 32))
    assert changed(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert {str(tile) for tile in plan.tiles} == (set() if name == "none" else {name})


def test_weights_that_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    own = timm.create_model("test_efficientnet", num_classes=3)
    assert load_fitting(own, path) == ["classifier.weight", "classifier.bias"]
    assert torch.equal(own.conv_stem.weight, load_file(path)["conv_stem.weight"])
    with pytest.raises(TiledSEError, match="do not fit: .* numbers have the same name and shape"):
        load_fitting(timm.create_model("test_byobnet"), path)


def test_a_head_of_other_channels_and_classes():
    assert build_classifier("timm:test_efficientnet", 5, (1, 32, 32))(torch.randn(2, 1, 32, 32)).shape == (
        2,
        5,
    )
    assert build_classifier("torchvision:mobilenet_v3_small", 5, SIZE)(torch.randn(2, *SIZE)).shape == (2, 5)


# Normalisation.


def folded(model):
    """The normalisation of a deployed file: mean 0, variance 1."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.running_mean)
            nn.init.ones_(layer.running_var)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return model


def test_restored_normalisation_keeps_the_function():
    torch.manual_seed(0)
    model = folded(timm.create_model("test_efficientnet", num_classes=3)).double().eval()
    batches = [torch.randn(8, 3, 32, 32).double() for _ in range(3)]
    x = torch.randn(4, 3, 32, 32).double()
    before = model(x)
    layers = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert restore_statistics(model, batches) == layers
    torch.testing.assert_close(model(x), before, atol=1e-9, rtol=1e-9)
    # The statistics are those of the batches: training mode on all of them gives the function too.
    whole = torch.cat(batches)
    expected = model(whole)
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    torch.testing.assert_close(model(whole), expected, atol=1e-6, rtol=1e-4)


def test_statistics_that_saw_data_are_left_alone():
    model = timm.create_model("test_efficientnet", num_classes=3).train()
    model(torch.randn(8, 3, 32, 32) + 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert restore_statistics(model, [torch.randn(8, 3, 32, 32)]) == 0
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_restored_normalisation_of_the_real_network(mobilenet):
    """De-quantised weights with folded normalisation, on its own kind of input."""
    torch.manual_seed(0)
    x = F.interpolate(torch.randn(8, 3, 14, 14), 64, mode="bilinear").clamp(-1, 1)
    with torch.no_grad():
        before = mobilenet(x)
        assert restore_statistics(mobilenet, [x]) == 34
        torch.testing.assert_close(mobilenet(x), before, atol=2e-3, rtol=1e-3)


# Distillation.


def test_divergence():
    teacher, student = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (t.double().softmax(1) for t in (teacher, student))
    expected = (p * (p / q).log()).sum(1).mean()
    assert float(divergence(teacher, student)) == pytest.approx(float(expected), rel=1e-5)
    assert float(divergence(teacher, teacher)) == pytest.approx(0, abs=1e-7)
    warm = (teacher / 3).double().softmax(1)
    cool = (student / 3).double().softmax(1)
    hinton = 9 * (warm * (warm / cool).log()).sum(1).mean()
    assert float(divergence(teacher, student, 3.0)) == pytest.approx(float(hinton), rel=1e-5)
    maps = [torch.ones(2, 3, 4, 4), torch.ones(2, 3, 2, 2)]
    assert float(divergence(maps, [m * 1.5 for m in maps])) == pytest.approx(0.25)
    assert float(divergence({"out": maps[0]}, {"out": maps[0]})) == 0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small SE network whose gates differ from place to place, so that tiles matter."""
    torch.manual_seed(1)
    model = timm.create_model("test_efficientnet", num_classes=3)
    for block in find(model, (3, 32, 32)).blocks:
        se = model.get_submodule(block.name)
        for layer in (se.conv_reduce, se.conv_expand):
            nn.init.normal_(layer.weight, std=0.5)
    model.train()
    for _ in range(20):
        model(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("teacher") / "se.safetensors"
    save_file(model.eval().state_dict(), path)
    return path


def test_distillation_without_labels(teacher, tmp_path):
    """Two folders of images, one with class folders and one without; the student comes nearer its teacher."""
    a = class_folders(tmp_path / "a", train=16) / "train"
    b = tmp_path / "b"
    b.mkdir()
    for path in (a / "c0").iterdir():
        path.rename(b / path.name)
    given = ("finetune", "timm:test_efficientnet", "--distill", "--weights", teacher, "--tile", "1xW")
    given += ("--device", "cpu")
    small = ["epochs=6", "batch_size=8", "classes=3", "input=3x32x32", "cache=32"]
    changes = [word for change in small for word in ("--set", change)]
    done = tiledse(*given, *changes, "--data", a, "--data", b, "-o", tmp_path / "runs", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)["results"][0]
    lines = [line for line in done.err.splitlines() if " epoch " in line]
    first = float(lines[0].split("divergence ")[1].split()[0])
    assert 0 < result["divergence"] < 0.8 * first, lines
    assert 0 <= result["agree"] <= 100
    # 48 images in both folders; one in sixteen is held out.
    folder = tmp_path / "runs" / "test_efficientnet" / "1xW" / "seed0"
    se, student = load_file(teacher), load_file(folder / "best.safetensors")
    assert se.keys() == student.keys()
    # Only the SE blocks learn, unless the recipe says otherwise.
    learnt = {key for key in se if not torch.equal(se[key], student[key])}
    assert learnt
    assert all(".se." in key for key in learnt), learnt
    assert str(ts.Plan.load(folder / "best.safetensors").tiles[0]) == "1xW"


def test_distillation_begins_at_the_teacher(teacher, tmp_path):
    """The SE network itself as the student diverges by nothing."""
    data = class_folders(tmp_path / "a") / "train"
    recipe = tmp_path / "d.toml"
    recipe.write_text(
        'task = "distill"\nclasses = 3\ninput = "3x32x32"\nepochs = 1\nbatch_size = 8\nfreeze_norm = true\n'
        '[optimizer]\nlr = 0.0\n[[network]]\nmodel = "timm:test_efficientnet"\n[[variant]]\nname = "se"\n'
        'start = "weights"\n'
    )
    given = ("train", recipe, "--data", data, "-o", tmp_path / "runs", "--device", "cpu")
    assert_refused(tiledse(*given), "needs the trained SE network", "--weights")
    done = tiledse(*given, "--weights", teacher, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)["results"][0]
    assert result["divergence"] == pytest.approx(0, abs=1e-6)
    assert result["agree"] == 100


def test_trainable_that_names_nothing(teacher, tmp_path):
    given = (
        "finetune",
        "timm:test_efficientnet",
        "--distill",
        "--weights",
        teacher,
        "--tile",
        "1xW",
        "--device",
        "cpu",
    )
    data = class_folders(tmp_path / "a") / "train"
    small = ("--set", "classes=3", "--set", "input=3x32x32", "--set", 'trainable=["head.*"]')
    done = tiledse(*given, *small, "--data", data, "-o", tmp_path / "runs")
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        "tiledse: recipe: trainable = ['head.*'] matches no parameter; they have names such as 'conv_stem.weight'"
    )


# Segmentation.


SEGMENT = """
task = "segment"
input = "3x48x64"
classes = 2
epochs = 2
batch_size = 4
cache = 1
as_is = ["1xW"]
[[network]]
model = "timm:mobilenetv3_small_050"
[[variant]]
name = "se"
[[variant]]
name = "3xW"
tile = "3xW"
start = "se"
[optimizer]
lr = 0.05
[schedule]
name = "poly"
[augment]
resize_range = [0.9, 1.2]
"""


@pytest.mark.parametrize("cache", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_segmentation(tmp_path, cache):
    data = masked(tmp_path / "data")
    recipe = tmp_path / "s.toml"
    recipe.write_text(SEGMENT.replace("cache = 1", f"cache = {cache}"))
    given = ("train", recipe, "--data", data, "-o", tmp_path / "runs", "--device", "cpu")
    short = ("--variant", "se", "--set", "epochs=1", "--set", "as_is=[]")
    done = tiledse(*given, "--json", *(() if cache else short))
    assert done.code == 0, done.err
    results = json.loads(done.out)["results"]
    assert [r["variant"] for r in results] == ["se", "3xW"][: 1 + cache]
    assert set(results[0]["as_is"]) == ({"1xW"} if cache else set())
    assert all(0 <= r["mIoU"] <= 100 and 0 <= r["pixel_accuracy"] <= 100 for r in results)
    wrong = tiledse(*given, "--set", "subset=0.5", "-o", tmp_path / "w")
    assert wrong.code == 2
    assert "subset goes with classify and distill" in wrong.err.splitlines()[-1]


def test_segmentation_starts_from_a_backbone(mobilenet, shared, tmp_path):
    """The head of 1000 classes is no part of a segmenter; every weight of the backbone is."""
    from tiledse.networks.segmenter import backbone_of

    network = build_segmenter("timm:tf_mobilenetv3_small_100", 11, SIZE)
    left = load_fitting(backbone_of(network), shared / "models" / "tf_mobilenetv3_small_100.safetensors")
    assert left == []
    with pytest.raises(TiledSEError, match="expected timm:NAME or torchvision"):
        build_segmenter("timm:mobilenet", 11, SIZE)
    with pytest.raises(TiledSEError, match="no features at strides 8 and 16"):
        build_segmenter("timm:test_vit", 11, SIZE)


def test_mean_iou_by_counting(shared):
    """Our confusion matrix against sums over sets of pixels, on real masks with a wrong network."""
    from tiledse.train.objective import Setting
    from tiledse.train.recipe import Recipe
    from tiledse.train.sections import Network
    from tiledse.train.segmentation import Segmentation

    recipe = Recipe(
        task="segment", classes=11, input="3x360x480", network=(Network("timm:mobilenetv3_small_050"),)
    )
    objective = Segmentation(recipe, Setting((shared / "data" / "camvid",), torch.device("cpu")))
    held = objective._held[""]
    object.__setattr__(held, "pairs", held.pairs[:3])

    class Rows(nn.Module):
        """Class 1 in the upper half (buildings), 3 (road) below."""

        def forward(self, x):
            out = torch.zeros(1, 11, 360, 480)
            out[:, 1, :180], out[:, 3, 180:] = 1, 1
            return {"out": out}

    got = dict(objective._judge(Rows(), held))
    guess = torch.ones(360, 480, dtype=torch.long)
    guess[180:] = 3
    ious, right, seen = [], 0, 0
    pairs = [held.read(i)[1].long() for i in range(3)]
    for c in range(11):
        both = sum(int(((guess == c) & (mask == c)).sum()) for mask in pairs)
        either = sum(int((((guess == c) | (mask == c)) & (mask != 255)).sum()) for mask in pairs)
        if either:
            ious.append(both / either)
        right += both
        seen += sum(int((mask == c).sum()) for mask in pairs)
    assert got["mIoU"] == pytest.approx(100 * sum(ious) / len(ious), rel=1e-9)
    assert got["pixel_accuracy"] == pytest.approx(100 * right / seen, rel=1e-9)
