"""Accuracy of SE and TSE: against counting in Python, published baselines, and wrong use."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import tiledse as ts
from tiledse.data.images import ImageSet, ListedImages, Sample, stack
from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.accuracy import evaluate_pair as evaluate
from tiledse.evaluate.evaluation import Evaluation, ImageResult
from tiledse.networks.converter import convert_shared


class Numbered(ImageSet):
    """Images whose pixels are their numbers, so that a network can look its logits up."""

    def __init__(self, labels, classes=None):
        self.labels, self.classes = labels, classes

    def count(self, batch_size, part=(0, 1)):
        return len(self.labels)

    def dataset(self, batch_size, part):
        rows = [Sample(torch.full((1, 1, 1), i), y, f"{i}.png", (0, i)) for i, y in enumerate(self.labels)]
        return [stack(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


def table(logits):
    logits = torch.as_tensor(logits)
    return lambda x: logits[x.flatten()]


@settings(deadline=None)
@given(data=st.data(), n=st.integers(1, 40), classes=st.integers(1, 12), batch_size=st.integers(1, 50))
def test_every_number_is_counted_right(data, n, classes, batch_size):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    labels = rng.integers(0, classes, n).tolist()
    # Permutations: no ties, so that the order of classes is one.
    se, tse = (np.array([rng.permutation(classes) for _ in range(n)], dtype=np.float32) for _ in range(2))
    result = evaluate(table(se), table(tse), Numbered(labels), batch_size=batch_size)

    def place(logits, i):
        return sum(value > logits[i][labels[i]] for value in logits[i])

    first = [[place(x, i) == 0 for i in range(n)] for x in (se, tse)]
    five = [[place(x, i) < 5 for i in range(n)] for x in (se, tse)]
    got = result.to_dict()
    assert (result.n, result.se.correct, result.tse.correct) == (n, sum(first[0]), sum(first[1]))
    assert got["se"] == pytest.approx({"top1": 100 * np.mean(first[0]), "top5": 100 * np.mean(five[0])})
    assert got["tse"] == pytest.approx({"top1": 100 * np.mean(first[1]), "top5": 100 * np.mean(five[1])})
    assert result.lost == sum(a and not b for a, b in zip(*first))
    assert result.gained == sum(b and not a for a, b in zip(*first))
    assert result.agree == (se.argmax(1) == tse.argmax(1)).sum()
    assert result.drop == pytest.approx(result.se.top1 - result.tse.top1)
    assert got["drop_ci95"][0] <= got["drop"] <= got["drop_ci95"][1]
    assert [i.name for i in result.images] == [f"{i}.png" for i in range(n)]


def test_keys_are_those_of_the_design():
    got = Evaluation((ImageResult("a", 1, 1, 2, True, True),)).to_dict()
    assert list(got) == ["task", "n", "se", "tse", "paired", "drop", "drop_ci95"]
    assert list(got["se"]) == list(got["tse"]) == ["top1", "top5"]
    assert list(got["paired"]) == ["agree", "lost", "gained", "p_value"]


def test_a_tie_cannot_be_first_and_yet_not_among_five():
    flat = table(torch.zeros(10, 10))
    result = evaluate(flat, flat, Numbered(list(range(10))))
    assert result.se.correct == 1
    assert result.se.correct5 == 5


def test_images_are_listed(tmp_path):
    se, tse = torch.eye(4)[[0, 1, 2, 3]], torch.eye(4)[[0, 2, 2, 1]]
    result = evaluate(table(se), table(tse), Numbered([0, 1, 3, 1]))
    result.save_images(tmp_path / "images.csv")
    with (tmp_path / "images.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file", "label", "se", "tse", "outcome"],
        ["0.png", "0", "0", "0", "kept"],
        ["1.png", "1", "1", "2", "lost"],
        ["2.png", "3", "2", "2", "wrong"],
        ["3.png", "1", "3", "1", "gained"],
    ]


def test_modules_run_in_eval_mode_and_keep_their_own():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1), nn.Dropout(0.5), nn.Linear(1, 3))
    network[1].eval()
    floats = lambda x: network(x.float())  # noqa: E731
    before = {key: value.clone() for key, value in network.state_dict().items()}

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            return floats(x)

    whole = Whole()
    result = evaluate(whole, whole, Numbered([0] * 20), batch_size=7)
    assert result.agree == 20
    assert [m.training for m in network] == [True, False, True, True]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_progress_tells_images():
    calls = []
    flat = table(torch.zeros(5, 2))
    evaluate(
        flat, flat, Numbered([0] * 5), batch_size=2, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_autocast_reaches_the_networks():
    seen = []
    layer = nn.Linear(1, 3)

    def network(x):
        seen.append(layer(x.flatten(1).float()))
        return seen[-1]

    evaluate(network, network, Numbered([0, 1]), amp=torch.bfloat16)
    assert [x.dtype for x in seen] == [torch.bfloat16] * 2


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("se", "tse", "images", "message"),
    [
        ([[0.0, 1.0], [0.0, NAN]], None, {}, "image 1.png: the SE network's logits are not finite"),
        (None, [[INF, 1.0], [0.0, 1.0]], {}, "image 0.png: the TSE network's logits are not finite"),
        (None, None, {"labels": [0, 2]}, "image 1.png has label 2, but the network has 2 classes"),
        (None, None, {"classes": 3}, "the set has 3 class folders, the network 2 classes; give --class-map"),
        (None, [[0.0] * 3] * 2, {}, "SE gives 2 classes and TSE 3"),
        ([[[0.0]]] * 2, None, {}, r"SE network is no classifier: .* \(2, classes\), got \(2, 1, 1\)"),
        (None, None, {"labels": []}, "no image to evaluate"),
    ],
)
def test_wrong_use(se, tse, images, message):
    fine = [[0.0, 1.0]] * 2
    with pytest.raises(ts.TiledSEError, match=message) as raised:
        evaluate(table(se or fine), table(tse or fine), Numbered(**{"labels": [0, 1], **images}))
    assert "\n" not in str(raised.value)


def test_a_network_that_gives_a_tuple_is_refused():
    with pytest.raises(ts.TiledSEError, match=r"no classifier: .*got tuple"):
        evaluate(lambda x: (x, x), lambda x: (x, x), Numbered([0]))


def test_too_large_a_batch_is_told():
    def network(x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(ts.TiledSEError, match="batches of 2 images; take a smaller batch size"):
        evaluate(network, network, Numbered([0, 1, 2]), batch_size=2)


# The real network


@pytest.fixture
def plan(mobilenet):
    return ts.find(mobilenet, (3, 224, 224))


def real_images(shared, mobilenet, count=None):
    images = open_images(shared / "data" / "imagenet_val1300", Preprocessing.of(mobilenet, kind="crop"))
    assert isinstance(images, ListedImages)
    return ListedImages(images.folder, images.files[:count], images.preprocess)


def tiled_by_hand(block, x, rows):
    """models/README.md: pool strips with ceil_mode, repeat the gate, cut it to H."""
    pooled = F.avg_pool2d(x, (rows, x.shape[3]), ceil_mode=True)
    gate = block.gate(block.conv_expand(block.act1(block.conv_reduce(pooled))))
    return x * gate.repeat_interleave(rows, dim=2)[:, :, : x.shape[2]]


def test_real_images_against_a_reference(shared, mobilenet, plan):
    count = 120
    folder = shared / "data" / "imagenet_val1300"
    result = evaluate(
        mobilenet,
        convert_shared(mobilenet, plan.with_tile("7xW")),
        real_images(shared, mobilenet, count),
        batch_size=40,
    )
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[:count]
    x = [np.asarray(Image.open(folder / row["file"]).convert("RGB").crop((1, 1, 225, 225))) for row in rows]
    x = torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2) / 127.5 - 1
    labels = [int(row["label"]) for row in rows]
    with torch.inference_mode():
        se = mobilenet(x).numpy().argsort(1)[:, ::-1]
        for block in plan.blocks:
            module = mobilenet.get_submodule(block.name)
            module.forward = lambda y, module=module: tiled_by_hand(module, y, min(7, y.shape[2]))
        tse = mobilenet(x).numpy().argsort(1)[:, ::-1]
    assert [(i.label, i.se, i.tse) for i in result.images] == list(zip(labels, se[:, 0], tse[:, 0]))
    assert result.se.correct5 == sum(y in row[:5] for y, row in zip(labels, se))
    assert result.tse.correct5 == sum(y in row[:5] for y, row in zip(labels, tse))
    assert 0 < result.lost + result.gained < result.n


@pytest.mark.slow
def test_the_stated_baselines(shared, mobilenet, plan):
    """models/README.md: SE 75.38 / 91.54 (980 of 1300), 7xW 74.46 / 91.62."""
    # Batches of 10 stay in the cache: half the time of batches of 50.
    tse = convert_shared(mobilenet, plan.with_tile("7xW"))
    result = evaluate(mobilenet, tse, real_images(shared, mobilenet), batch_size=10)
    assert (result.n, result.se.correct) == (1300, 980)
    assert f"{result.se.top1:.2f} {result.se.top5:.2f}" == "75.38 91.54"
    assert f"{result.tse.top1:.2f} {result.tse.top5:.2f}" == "74.46 91.62"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "printed"), [("3xW", "67.23 89.38"), ("Hx7", "75.00 91.23"), ("14xW", "75.38 91.54")]
)
def test_more_stated_baselines(shared, mobilenet, plan, tile, printed):
    tse = convert_shared(mobilenet, plan.with_tile(tile))
    result = evaluate(mobilenet, tse, real_images(shared, mobilenet), batch_size=10)
    assert f"{result.tse.top1:.2f} {result.tse.top5:.2f}" == printed
    assert tile != "14xW" or result.agree == 1300
