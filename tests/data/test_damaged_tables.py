"""Tables that a user may have opened in a spreadsheet, or that were cut off: refused by line."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from tiledse.context.sweep_file import COLUMNS, SweepFile
from tiledse.data.opening import open_images
from tiledse.errors import TiledSEError
from tiledse.networks.zoo.catalogue import FOLDER, entries


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,99999999999999999999", "line 2: expected a label that is a number"),
        ("a.png,4294967296", "line 2: expected a label that is a number"),
        (f"a.png,{'9' * 5000}", "line 2: expected a label that is a number"),
        ("a.png,²", "line 2: expected a label that is a number"),
        ("a.png", "line 2: expected a label that is a number"),
        (f"{'x' * 100_000},1", "line 2: there is no file 'xxx"),
        ("a\0b.png,1", "line 2: there is no file|line contains NUL"),
        (",1", "line 2: there is no file ''"),
        ("\x1b[2J.png,1", r"line 2: there is no file '\\x1b\[2J"),
    ],
)
def test_labels(tmp_path, row, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"file,label\n{row}\n")
    with pytest.raises(TiledSEError, match=message) as refused:
        open_images(tmp_path, lambda image: torch.zeros(3, 4, 4))
    assert len(str(refused.value)) < 1000


def sweep(tmp_path, **changes):
    row = dict.fromkeys(COLUMNS, "1") | changes
    lines = [",".join(COLUMNS), ",".join(row.values())]
    path = tmp_path / "sweep.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("number", ["nan", "inf", "1e400", "drop", "9" * 5000])
def test_a_sweep_with_a_figure_that_is_none(tmp_path, number):
    with pytest.raises(
        TiledSEError, match="about line 2, is no result of a sweep: expected drop to be a finite"
    ):
        SweepFile(sweep(tmp_path, drop=number))


def test_a_sweep_with_a_line_cut_off(tmp_path):
    path = sweep(tmp_path)
    path.write_text(path.read_text()[:-10])
    with pytest.raises(TiledSEError, match=f"about line 2, .*expected {len(COLUMNS)} cells"):
        SweepFile(path)


def test_a_sweep_that_is_empty(tmp_path):
    (tmp_path / "sweep.csv").touch()
    with pytest.raises(TiledSEError, match="is no result of a sweep, so nothing is added"):
        SweepFile(tmp_path / "sweep.csv")


def test_a_sweep_with_a_figure_that_does_not_exist(tmp_path):
    assert len(SweepFile(sweep(tmp_path, drop="")).rows) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accuracy", "high", "accuracy to be a finite number"),
        ("n", 0, "n to be a whole number"),
        ("input", "224", "input to be CxHxW"),
        ("file", "../../weights.safetensors", "file to be a file's name"),
        ("file", 3, "file to be a text"),
        ("figures", {"top1": None}, "top1 to be a finite number"),
        ("tile", 7, "tile to be a text"),
        ("changed", 3, "changed to be a list"),
        ("colour", "red", "unexpected keyword argument 'colour'"),
    ],
)
def test_an_index_of_the_zoo_that_was_changed(tmp_path, key, value, message):
    index = json.loads((FOLDER / "index.json").read_text())
    index["networks"][0][key] = value
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(TiledSEError, match=message):
        entries(tmp_path)


@pytest.mark.parametrize(
    ("kind", "number", "message"),
    [
        ("annotations", None, "an entry lacks 'id'"),
        ("annotations", "/etc/passwd", "id in annotations to be a whole number"),
        ("categories", 1.5, "id in categories to be a whole number"),
        ("images", [1], "id in images to be a whole number"),
    ],
)
def test_annotations_with_an_id_that_is_none(tmp_path, kind, number, message):
    pytest.importorskip("pycocotools")
    from tiledse.evaluate.adapters import Detector
    from tiledse.evaluate.detection import CocoImages

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4]}
    images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}]
    data = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": [box]}
    if number is None:
        del data[kind][0]["id"]
    else:
        data[kind][0]["id"] = number
    (tmp_path / "a.json").write_text(json.dumps(data))
    detector = Detector(lambda image: torch.zeros(3, 8, 8), lambda output, sizes: [])
    with pytest.raises(TiledSEError, match=message):
        CocoImages(tmp_path / "a.json", detector)
