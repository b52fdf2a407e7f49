"""Image sets: what is read is what is there, once, in order; and what is wrong is named."""

from __future__ import annotations

import csv
import gzip
import io
import random
import tarfile

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import models

import tiledse as ts
from tiledse.data.images import ListedImages
from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.networks.image_config import torchvision_config

HALF = (0.5, 0.5, 0.5)
CUT = Preprocessing((3, 8, 8), HALF, HALF, kind="crop")


def picture(seed=0, size=(9, 9), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(seed=0):
    file = io.BytesIO()
    picture(seed).save(file, "jpeg")
    return file.getvalue()


def write_labels(folder, rows, header="file,label"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def write_shard(path, samples):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in samples:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def samples(count, start=0):
    return [
        pair
        for i in range(start, start + count)
        for pair in ((f"{i:03}.jpg", jpeg(i)), (f"{i:03}.cls", str(i % 7).encode()))
    ]


def read(images, **options):
    batches = list(images.batches(options.pop("batch_size", 4), **options))
    return [
        (name, label, tuple(place))
        for batch in batches
        for name, label, place in zip(batch.names, batch.labels.tolist(), batch.places.tolist(), strict=True)
    ]


# Preprocessing


def test_crop_is_the_baselines(shared, mobilenet):
    folder = shared / "data" / "imagenet_val1300"
    images = open_images(folder, Preprocessing.of(mobilenet, kind="crop"))
    batch = next(images.batches(8))
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert images.count(8) == len(rows) == 1300
    for row, name, label, got in zip(rows[:8], batch.names, batch.labels.tolist(), batch.inputs, strict=True):
        x = np.asarray(Image.open(folder / row["file"]).convert("RGB").crop((1, 1, 225, 225)), np.float32)
        assert (name, label) == (row["file"], int(row["label"]))
        torch.testing.assert_close(
            got, torch.from_numpy(x / 127.5 - 1).permute(2, 0, 1), rtol=0, atol=2e-7, check_stride=False
        )


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100", "regnety_008", "efficientnet_b2"])
def test_default_is_timms_evaluation(name):
    model = timm.create_model(name)
    config = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    image = picture(size=(400, 300))
    assert torch.equal(Preprocessing.of(model)(image), timm.data.create_transform(**config)(image))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b2", "regnet_y_800mf"])
def test_torchvisions_own_evaluation(name):
    preset = models.get_model_weights(name).DEFAULT.transforms()
    ours = Preprocessing.of(torch.nn.Identity(), config=torchvision_config(name))
    image = picture(size=(400, 320))
    torch.testing.assert_close(ours(image), preset(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_mode_becomes_the_networks(mode):
    assert CUT(picture(mode=mode)).shape == (3, 8, 8)
    assert Preprocessing((1, 8, 8), (0.5,), (0.5,), kind="crop")(picture(mode=mode)).shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 8, 8), HALF, HALF, "bilinear", 1.0, "center", "centre"), "'network' or 'crop', got 'centre'"),
        (((1, 8, 8), HALF, HALF), "got 1 channels, 3 means and 3 stds"),
        (((4, 8, 8), HALF, HALF), "1 or 3 channels"),
    ],
)
def test_wrong_preprocessing(arguments, message):
    with pytest.raises(ts.TiledSEError, match=message):
        Preprocessing(*arguments)


# Folders and lists


def test_labels_csv(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(["b.png", "sub/a.jpg"]):
        picture(i).save(tmp_path / name)
    write_labels(tmp_path, ["b.png,7,x", "sub/a.jpg,0,y"], "file,label,wnid")
    expected = [("b.png", 7, (0, 0)), ("sub/a.jpg", 0, (0, 1))]
    assert read(open_images(tmp_path, CUT)) == expected
    assert read(open_images(tmp_path / "labels.csv", CUT), workers=2, batch_size=1) == expected


def class_tree(tmp_path, names):
    for i, name in enumerate(names):
        (tmp_path / name / "deep").mkdir(parents=True)
        picture(i).save(tmp_path / name / "deep" / f"{i}.JPEG")
        (tmp_path / name / "notes.txt").write_text("no image")
    return tmp_path


def test_class_folders_are_labelled_in_sorted_order(tmp_path):
    class_tree(tmp_path, ["n03", "n01", "n02", ".cache"])
    images = open_images(tmp_path, CUT)
    assert images.classes == 3
    assert [(name, label) for name, label, _ in read(images)] == [
        ("n01/deep/1.JPEG", 0),
        ("n02/deep/2.JPEG", 1),
        ("n03/deep/0.JPEG", 2),
    ]


def test_class_map_gives_the_labels(tmp_path):
    class_tree(tmp_path / "set", ["n03", "n10", "n2"])
    (tmp_path / "map.txt").write_text("n2\nother\nn10\nn03\n")
    images = open_images(tmp_path / "set", CUT, class_map=tmp_path / "map.txt")
    assert images.classes is None
    assert {name[:3]: label for name, label, _ in read(images)} == {"n2/": 0, "n10": 2, "n03": 3}


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a.png,1"], "name,class", "columns file,label in its first line, got name,class"),
        ([], "file,label", "lists no image"),
        (["a.png,cat"], "file,label", r"line 2: expected a label that is a number from 0, got 'cat'"),
        (["a.png,1", "a.png,1.5"], "file,label", r"line 3: .* got '1.5'"),
        (["a.png,-1"], "file,label", "got '-1'"),
        (["a.png"], "file,label", "got None"),
        (["a.png,1", "b.png,1"], "file,label", r"line 3: there is no file 'b.png'"),
        (["a.png,1", "a.png,2"], "file,label", "line 3: a.png is listed twice"),
    ],
)
def test_wrong_labels_csv(tmp_path, rows, header, message):
    picture().save(tmp_path / "a.png")
    with pytest.raises(ts.TiledSEError, match=message):
        open_images(write_labels(tmp_path, rows, header), CUT)


def test_wrong_folders(tmp_path):
    with pytest.raises(ts.TiledSEError, match="there is no such file or folder"):
        open_images(tmp_path / "none", CUT)
    with pytest.raises(ts.TiledSEError, match=r"no labelled images in .*expected a labels.csv"):
        open_images(tmp_path, CUT)
    (tmp_path / "n01").mkdir()
    with pytest.raises(ts.TiledSEError, match="no image in the 1 class folders"):
        open_images(tmp_path, CUT)
    (tmp_path / "map.txt").write_text("n02\nn03\n")
    with pytest.raises(ts.TiledSEError, match="lacks 1 of 1 class folders, such as 'n01'"):
        open_images(tmp_path, CUT, class_map=tmp_path / "map.txt")
    (tmp_path / "map.txt").write_text("n01\nn02\nn01\n")
    with pytest.raises(ts.TiledSEError, match="'n01' stands in lines 1 and 3"):
        open_images(tmp_path, CUT, class_map=tmp_path / "map.txt")
    with pytest.raises(ts.TiledSEError, match="cannot read class map"):
        open_images(tmp_path, CUT, class_map=tmp_path / "none.txt")
    class_tree(tmp_path / "numbers", ["2", "10"])
    with pytest.raises(ts.TiledSEError, match="sort in two ways"):
        open_images(tmp_path / "numbers", CUT)
    picture().save(tmp_path / "a.png")
    with pytest.raises(ts.TiledSEError, match="goes with a folder of class folders"):
        open_images(write_labels(tmp_path, ["a.png,0"]), CUT, class_map=tmp_path / "map.txt")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (jpeg()[:200], "image bad.jpg: cannot be read"),
        (b"no picture", "image bad.jpg: cannot be read"),
        (b"", "image bad.jpg: cannot be read"),
        (None, r"image bad.jpg: it is 4x9 \(rows x columns\), smaller than the input 8x8"),
    ],
)
def test_an_unreadable_image_is_named(tmp_path, data, message, workers):
    picture().save(tmp_path / "good.jpg")
    if data is None:
        picture(size=(9, 4)).save(tmp_path / "bad.jpg")
    else:
        (tmp_path / "bad.jpg").write_bytes(data)
    images = open_images(write_labels(tmp_path, ["good.jpg,0", "bad.jpg,0"]), CUT)
    with pytest.raises(ts.TiledSEError, match=message) as raised:
        read(images, workers=workers)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": -1}, {"workers": -1}])
def test_wrong_batches(tmp_path, options):
    picture().save(tmp_path / "a.png")
    images = open_images(write_labels(tmp_path, ["a.png,0"]), CUT)
    with pytest.raises(ts.TiledSEError, match="at least 1 image and at least 0 workers"):
        read(images, **options)


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 30), batch_size=st.integers(1, 9), processes=st.integers(1, 5))
def test_parts_share_nothing_and_keep_the_batches(tmp_path_factory, count, batch_size, processes):
    folder = tmp_path_factory.getbasetemp()
    picture(size=(8, 8)).save(folder / "one.png")
    images = ListedImages(folder, [("one.png", i) for i in range(count)], CUT)
    whole = [batch.labels.tolist() for batch in images.batches(batch_size)]
    parts = [
        [batch.labels.tolist() for batch in images.batches(batch_size, part=(i, processes))]
        for i in range(processes)
    ]
    assert sorted(batch for part in parts for batch in part) == whole
    assert [label for batch in whole for label in batch] == list(range(count))
    for i, part in enumerate(parts):
        assert images.count(batch_size, (i, processes)) == sum(map(len, part))


# Shards


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_shards(tmp_path, suffix):
    write_shard(tmp_path / f"a-0{suffix}", samples(5))
    write_shard(tmp_path / f"a-1{suffix}", samples(4, start=5))
    expected = [(f"{i:03} of a-{i // 5}{suffix}", i % 7, (i // 5, i % 5)) for i in range(9)]
    patterns = [tmp_path, f"{tmp_path}/a-{{0..1}}{suffix}", f"{tmp_path}/*{suffix}"]
    assert all(read(open_images(pattern, CUT)) == expected for pattern in patterns)
    assert read(open_images(tmp_path / f"a-1{suffix}", CUT))[0][:2] == (f"005 of a-1{suffix}", 5)
    shards = open_images(tmp_path, CUT)
    assert sorted(read(shards, workers=3), key=lambda row: row[2]) == expected
    assert read(shards, part=(0, 3)) + read(shards, part=(1, 3)) + read(shards, part=(2, 3)) == expected
    first = next(shards.batches(1)).inputs[0]
    assert torch.equal(first, CUT(Image.open(io.BytesIO(jpeg(0)))))


def test_real_shards(shared):
    path = shared / "data" / "tiny_imagenet" / "val-0001.tar.gz"
    nothing = lambda image: torch.tensor(image.size)  # noqa: E731
    got = [(name.split()[0], label) for name, label, _ in read(open_images(path, nothing), batch_size=500)]
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".cls")}
    assert got == [(name.removesuffix(".cls"), int(data)) for name, data in members.items()]
    assert len(got) == 2500


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_shard_cut_off_anywhere_is_refused(tmp_path, suffix):
    whole = write_shard(tmp_path / f"whole{suffix}", samples(3)).read_bytes()
    cuts = range(0, 3 * 2 * 1024 + 512, 512) if suffix == ".tar" else range(0, len(whole), 97)
    for cut in cuts:
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[:cut])
        # Cut between .jpg and .cls, the sample without a label is what is told.
        with pytest.raises(
            ts.TiledSEError, match=rf"cut\{suffix}: .*(it is cut off or no tar|no label)"
        ) as raised:
            read(open_images(path, CUT))
        assert " object at " not in str(raised.value)


def test_damaged_shards(tmp_path):
    with gzip.open(tmp_path / "noise.tar.gz", "w") as file:
        file.write(random.Random(0).randbytes(5000))
    with pytest.raises(ts.TiledSEError, match=r"shard .*noise.tar.gz: .*it is cut off or no tar"):
        read(open_images(tmp_path / "noise.tar.gz", CUT))
    data = bytearray(write_shard(tmp_path / "bits.tar.gz", samples(3)).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "bits.tar.gz").write_bytes(data)
    with pytest.raises(ts.TiledSEError, match=r"bits\.tar\.gz"):
        read(open_images(tmp_path / "bits.tar.gz", CUT))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("a.jpg", jpeg())], "sample a of s.tar: no label"),
        ([("a.cls", b"1")], r"sample a of s.tar: no image \(jpg, jpeg, png\)"),
        ([("a.jpg", jpeg()), ("a.cls", b"cat")], r"no label: .cls holds b'cat'; expected"),
        ([("a.jpg", jpeg()), ("a.cls", b"-1")], r"no label: .cls holds b'-1'"),
        ([("a.jpg", jpeg()[:99]), ("a.cls", b"1")], "image a of s.tar: cannot be read"),
        ([("a.jpg", jpeg()), ("a.jpg", jpeg()), ("a.cls", b"1")], "duplicate file name"),
    ],
)
def test_wrong_samples(tmp_path, entries, message):
    with pytest.raises(ts.TiledSEError, match=message) as raised:
        read(open_images(write_shard(tmp_path / "s.tar", entries), CUT))
    assert "\n" not in str(raised.value)


def test_missing_shards(tmp_path):
    write_shard(tmp_path / "a-0.tar", samples(1))
    with pytest.raises(ts.TiledSEError, match=r"no shard at .*a-1.tar \(from"):
        open_images(f"{tmp_path}/a-{{0..1}}.tar", CUT)
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(ts.TiledSEError, match=r"b.txt is no shard: expected .tar"):
        open_images(f"{tmp_path}/b.*", CUT)
