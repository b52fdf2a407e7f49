"""One set of images in every layout reads the same; another layout is refused with what was expected."""

from __future__ import annotations

import gzip
import shutil
import tarfile

import numpy as np
import pytest
import torch

from tests.train.sets import class_folders, listed, masked, shards
from tiledse import TiledSEError
from tiledse.train.classification import subset
from tiledse.train.images import keep
from tiledse.train.masks import IGNORED, open_masked
from tiledse.train.sources import Several, open_source, split_path


def everything(source):
    return sorted((source.labels[i], np.asarray(source.read(i)).tobytes()) for i in range(len(source)))


@pytest.mark.parametrize(
    "layout",
    [
        listed,
        shards,
        lambda folder: shards(folder, suffix=".tar.gz"),
        lambda folder: shards(folder, suffix=".tgz"),
    ],
)
def test_every_layout_gives_the_same_images(folders, tmp_path, layout):
    other = layout(tmp_path / "other")
    for part in ("train", "val"):
        mine, its = open_source(split_path(folders, part)), open_source(split_path(other, part))
        assert len(mine) == {"train": 24, "val": 12}[part]
        assert everything(mine) == everything(its)
        assert len({its.name(i) for i in range(len(its))}) == len(its)


def test_real_shards_compressed_and_plain(shared, tmp_path):
    """Tiny-ImageNet's first validation shard: gunzipped it is read by offsets, not from memory."""
    packed = shared / "data" / "tiny_imagenet" / "val-0000.tar.gz"
    plain = tmp_path / "val-0000.tar"
    with gzip.open(packed) as a, plain.open("wb") as b:
        shutil.copyfileobj(a, b)
    one, other = open_source(str(packed)), open_source(str(plain))
    assert one.labels == other.labels
    assert len(one) == 2500
    assert one._kept
    assert not other._kept
    with tarfile.open(packed) as tar:
        first = next(m.name for m in tar if m.name.endswith(".jpg"))
    assert one.name(0).startswith(first.removesuffix(".jpg"))
    for index in (0, 17, 2499):
        assert one.read(index).tobytes() == other.read(index).tobytes()


def test_folders_without_labels(folders, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    shutil.copy(folders / "train" / "c0" / "0.png", tmp_path / "a" / "x.png")
    shutil.copy(folders / "train" / "c1" / "0.png", tmp_path / "b" / "y.png")
    both = Several([open_source(tmp_path / name, labelled=False) for name in "ab"])
    assert len(both) == 2
    assert both.read(1).tobytes() == open_source(tmp_path / "b", labelled=False).read(0).tobytes()
    with pytest.raises(TiledSEError, match="no labelled images"):
        open_source(tmp_path / "a")


def test_a_share_of_each_class(folders):
    source = open_source(folders / "train")
    part = subset(source, 0.25)
    assert sorted(part.labels) == [0, 0, 1, 1, 2, 2]
    assert subset(source, 1.0) is source
    assert [part.name(i) for i in range(6)] == [subset(source, 0.25).name(i) for i in range(6)]


def test_wrong_layouts(tmp_path, folders):
    with pytest.raises(TiledSEError, match="there is no such folder"):
        split_path(tmp_path / "none", "train")
    (tmp_path / "images").mkdir()
    with pytest.raises(TiledSEError, match=r"no 'train' images in .*folders train and val.*shards named"):
        split_path(tmp_path, "train")
    # Class folders given where DIR with train and val belongs.
    with pytest.raises(TiledSEError, match="no 'train' images"):
        split_path(folders / "train", "train")
    (tmp_path / "validation").mkdir()
    assert split_path(tmp_path, "val") == tmp_path / "validation"


@pytest.mark.parametrize("damage", ["cut", "text", "nolabel", "label"])
def test_damaged_shards(tmp_path, damage):
    folder = shards(tmp_path / "s", suffix=".tar.gz")
    path = folder / "train-1.tar.gz"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:3000])
        expected = r"train-1.tar.gz: .*cut off or no tar"
    elif damage == "text":
        path.write_bytes(b"hello" * 300)
        expected = "cut off or no tar"
    else:
        with tarfile.open(path, "w:gz") as tar:
            name = folder / "x"
            name.write_text("cat")
            tar.add(name, "0_0.jpg" if damage == "nolabel" else "0_0.cls")
        expected = "one is missing" if damage == "nolabel" else "expected a number from 0 in .cls"
    with pytest.raises(TiledSEError, match=expected):
        open_source(split_path(folder, "train"))


def test_a_broken_image_is_named(tmp_path):
    folder = class_folders(tmp_path / "f")
    (folder / "train" / "c1" / "3.png").write_bytes(b"no image")
    with pytest.raises(TiledSEError, match=r"image .*c1/3.png: cannot be read.*replace it"):
        keep(open_source(folder / "train"), 8, torch.device("cpu"))


def test_masks_of_three_layouts(tmp_path):
    beside = masked(tmp_path / "beside")
    inside = tmp_path / "inside"
    city = tmp_path / "city"
    for part in ("train", "val"):
        (inside / "images").mkdir(parents=True, exist_ok=True)
        (inside / "masks").mkdir(exist_ok=True)
        shutil.copytree(beside / part, inside / "images" / part)
        shutil.copytree(beside / f"{part}_masks", inside / "masks" / part)
        for kind in ("leftImg8bit", "gtFine"):
            (city / kind / part / "bonn").mkdir(parents=True)
        for image in (beside / part).iterdir():
            name = f"bonn_{image.stem}_000019"
            shutil.copy(image, city / "leftImg8bit" / part / "bonn" / f"{name}_leftImg8bit.png")
            shutil.copy(
                beside / f"{part}_masks" / image.name,
                city / "gtFine" / part / "bonn" / f"{name}_gtFine_labelIds.png",
            )
    a, b = open_masked(beside, "train", 2), open_masked(inside, "train", 2)
    for index in range(len(a.pairs)):
        for x, y in zip(a.read(index), b.read(index), strict=True):
            assert torch.equal(x, y)
    assert set(a.read(0)[1].unique().tolist()) == {0, 1, IGNORED}
    # Cityscapes' ids 0 and 1 are scored as nothing, 11 (building) is class 2.
    assert set(open_masked(city, "val", 19).read(0)[1].unique().tolist()) == {IGNORED, 2}


def test_wrong_masks(tmp_path):
    with pytest.raises(TiledSEError, match="no 'train' images with masks.*Cityscapes"):
        open_masked(tmp_path, "train", 2)
    folder = masked(tmp_path / "m")
    (folder / "train_masks" / "3.png").unlink()
    with pytest.raises(TiledSEError, match=r"image 3.png has no mask: expected .*3.png"):
        open_masked(folder, "train", 2)
    shutil.copy(folder / "train" / "2.png", folder / "val_masks" / "2.png")
    with pytest.raises(TiledSEError, match="expected one channel of class indices, got RGB"):
        open_masked(folder, "val", 2).read(2)
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(TiledSEError, match="the set is empty"):
        open_masked(folder, "train", 2)
