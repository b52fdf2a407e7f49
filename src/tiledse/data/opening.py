"""Open a set of labelled images: a tree of class folders, a list in a CSV file, or tar shards."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..errors import TiledSEError
from ..files import is_file
from ..numerals import parse_whole, quoted
from .images import MOST_LABEL, SHARD_SUFFIXES, ImageSet, ListedImages, Preprocess
from .shards import ShardedImages, expand_shards


def open_images(path: str | Path, preprocess: Preprocess, *, class_map: str | Path | None = None) -> ImageSet:
    """Open a set of labelled images.

    ==============================  ==================================================================
    a folder with ``labels.csv``    columns ``file`` (relative to it) and ``label`` (a number from 0);
                                    the path of any such CSV file will do
    a folder of class folders       labels are the places of the folders' names in sorted order
    a folder of tar shards          WebDataset: ``KEY.jpg`` (jpeg, png) and ``KEY.cls``, a number;
                                    also one shard, or a pattern such as ``val-{0000..0001}.tar``
    ==============================  ==================================================================

    Args:
        path: The folder, file or pattern.
        preprocess: PIL image to tensor (C, H, W), such as Preprocessing.
        class_map: For class folders: a text file with one folder's name a line, the label being the number
            of the line from 0, as timm has it.

    Raises:
        TiledSEError: nothing there, no images, labels that are none.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 8)).save(folder / "black.png")
        >>> _ = (folder / "labels.csv").write_text("file,label\\nblack.png,3\\n")
        >>> images = open_images(folder, lambda image: torch.zeros(3, 8, 8))
        >>> [batch.labels for batch in images.batches(batch_size=2)]
        [tensor([3])]
    """
    text, path = str(path), Path(path)
    if class_map is not None and (not path.is_dir() or (path / "labels.csv").is_file()):
        raise TiledSEError(
            f"--class-map goes with a folder of class folders, and {path} is none; leave it out"
        )
    if any(mark in text for mark in "*?{") and not path.exists():
        return ShardedImages(expand_shards(text), preprocess)
    if not path.exists():
        raise TiledSEError(f"no images at {path}: there is no such file or folder")
    if path.is_file():
        if path.suffix == ".csv":
            return ListedImages(path.parent, _read_labels(path), preprocess)
        if path.name.endswith(SHARD_SUFFIXES):
            return ShardedImages([path], preprocess)
    elif (path / "labels.csv").is_file():
        return ListedImages(path, _read_labels(path / "labels.csv"), preprocess)
    elif shards := sorted(file for file in path.iterdir() if file.name.endswith(SHARD_SUFFIXES)):
        return ShardedImages(shards, preprocess)
    elif names := sorted(d.name for d in path.iterdir() if d.is_dir() and not d.name.startswith(".")):
        labels = (
            _number_classes(path, names) if class_map is None else _read_class_map(Path(class_map), names)
        )
        files = _list_class_folders(path, labels)
        return ListedImages(path, files, preprocess, classes=len(names) if class_map is None else None)
    raise TiledSEError(
        f"no labelled images in {path}: expected a labels.csv with columns file,label, one folder of images "
        "a class, or tar shards"
    )


def _read_labels(path: Path) -> list[tuple[str, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {"file", "label"} <= set(columns):
                raise TiledSEError(
                    f"{path}: expected the columns file,label in its first line, got "
                    f"{','.join(columns) or 'nothing'}"
                )
            rows = [(reader.line_num, row["file"], row["label"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TiledSEError(f"cannot read {path}: {error}") from error
    if not rows:
        raise TiledSEError(f"{path} lists no image")
    files: dict[str, int] = {}
    for line, name, label in rows:
        try:
            number = parse_whole(label or "", "label", most=MOST_LABEL)
        except ValueError as error:
            raise TiledSEError(
                f"{path}, line {line}: expected a label that is a number from 0, got {quoted(label)}"
            ) from error
        if name in files:
            raise TiledSEError(f"{path}, line {line}: {name} is listed twice")
        if not name or not is_file(path.parent / name):
            raise TiledSEError(f"{path}, line {line}: there is no file {quoted(name)} in {path.parent}")
        files[name] = number
    return list(files.items())


def _number_classes(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Labels in sorted order, if there is one: torchvision sorts as text, timm as people do (2 before 10)."""
    from timm.utils.misc import natural_key

    if sorted(names, key=natural_key) != list(names):
        raise TiledSEError(
            f"{path}: the class folders sort in two ways (such as 10 before 2, or B before a), "
            "so their labels are not known; give --class-map with one name a line, in the order of the "
            "network's classes"
        )
    return {name: label for label, name in enumerate(names)}


def _read_class_map(path: Path, names: Sequence[str]) -> dict[str, int]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TiledSEError(f"cannot read class map {path}: {error}") from error
    labels: dict[str, int] = {}
    for label, name in enumerate(lines):
        if name in labels:
            raise TiledSEError(
                f"class map {path}: '{name}' stands in lines {labels[name] + 1} and {label + 1}"
            )
        labels[name] = label
    missing = [name for name in names if name not in labels]
    if missing:
        raise TiledSEError(
            f"class map {path} lacks {len(missing)} of {len(names)} class folders, such as '{missing[0]}'; "
            "expected one folder's name a line"
        )
    return {name: labels[name] for name in names}


def _list_class_folders(path: Path, labels: dict[str, int]) -> list[tuple[str, int]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    found = make_dataset(str(path), labels, IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise TiledSEError(f"no image in the {len(labels)} class folders of {path}")
    return [(Path(file).relative_to(path).as_posix(), label) for file, label in found]
