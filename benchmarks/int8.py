"""Which parts of CenterNet lose by int8, with SE and with tiles: results/accuracy/int8_centernet.csv.

    python -m benchmarks.int8 damage --shared ../shared --cache DIR     # by block, no labels
    python -m benchmarks.int8 ap --shared ../shared --cache DIR         # AP of recipes, 128 images

onnxruntime quantises: QDQ, int8 per channel, ranges by min and max of 32 of COCO's training images. The damage of a
part is what happens to the outputs when only this part is quantised: the relative L2 distance of the heat map's scores
and of the boxes' sides from those of the same form in float, on 4 validation images. Rows that are there stay.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime import quantization
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnx
import tiledse as ts

RESULTS = Path(__file__).parent.parent / "results" / "accuracy" / "int8_centernet.csv"
FORMS, SIZE = ("HxW", "7xW"), (3, 512, 512)
# Parts that are left in float.
RECIPES: dict[str, tuple[str, ...]] = {
    "all int8": (),
    "float: outputs": ("outputs",),
    "float: descriptors": ("descriptors",),
    "float: stem": ("stem",),
    "float: stem, block 0": ("stem", "block 0"),
    "float: stem, blocks 0, 11": ("stem", "block 0", "block 11"),
    "float: stem, blocks 0, 10, 11, 13, 14": ("stem", *(f"block {i}" for i in (0, 10, 11, 13, 14))),
}
MEASURED = ("all int8", "float: stem, blocks 0, 11", "float: stem, blocks 0, 10, 11, 13, 14")
_CALIBRATION, _AT_ONCE, _IMAGES = 32, 4, 4
Keep = Callable[[str], bool]


def part(name: str) -> str:
    """The part of the network that a node belongs to."""
    if re.search(r"cls_output|wh_output", name) or name in ("mul", "Sigmoid"):
        return "outputs"
    if found := re.search(r"expanded_conv(?:_(\d+))?/", name):
        return f"block {found[1] or 0}"
    if name.startswith("MobilenetV3/Conv"):
        return "stem"
    if re.match(r"CenternetHead/(Mean|conv1x1_se|Sigmoid|mul)", name):
        return "SE of the head"
    return "extern1" if name.startswith("extern1") else "neck"


def descriptor(name: str) -> bool:
    """Whether a node is between a map and the product with its gates."""
    return bool(re.search(r"squeeze_excite/(?!mul$)|CenternetHead/(Mean|conv1x1_se|Sigmoid)", name))


def within(parts: Sequence[str]) -> Keep:
    """Whether a node is in one of some parts; ``descriptors`` is one too."""
    return lambda name: part(name) in parts or ("descriptors" in parts and descriptor(name))


class Form:
    """One form of the network: its float file, its ranges, and int8 files of it.

    Args:
        tile: The form.
        shared: The folder with data and models.
        cache: Where files and ranges are kept.
    """

    def __init__(self, tile: str, shared: Path, cache: Path) -> None:
        self.tile, self.images = tile, CocoFolder(shared / "data" / "coco128")
        self.path, self._ranges = cache / f"{tile}.onnx", cache / f"{tile}.pickle"
        if not self.path.exists():
            network = ts.open(str(shared / "models" / "centernet_mobilenetv3_075.onnx"), SIZE)
            plain = cache / f"{tile}_plain.onnx"
            ts.write(network, network.se.with_tile(tile), plain, ts.Form(batch=1))
            quant_pre_process(plain, self.path, skip_symbolic_shape=True)
        self.nodes = [node.name for node in onnx.load(self.path).graph.node]

    def ranges(self) -> Any:
        """Least and largest of each value on the training images."""
        if not self._ranges.exists():
            calibrator = quantization.create_calibrator(
                self.path, augmented_model_path=f"{self.path}.augmented"
            )
            calibrator.set_execution_providers(["CPUExecutionProvider"])
            given = onnx.load(self.path).graph.input[0].name
            for start in range(0, _CALIBRATION, _AT_ONCE):  # it keeps what it sees until it is asked
                some = itertools.islice(self.images.pixels("train"), start, start + _AT_ONCE)
                calibrator.collect_data(Reader(given, some))
                found = calibrator.compute_data()
            self._ranges.write_bytes(pickle.dumps(found))
        return pickle.loads(self._ranges.read_bytes())

    def int8(self, keep: Keep) -> bytes:
        """The file with those nodes in int8 that ``keep`` says."""
        quantizer = QDQQuantizer(
            onnx.load(self.path), per_channel=True, reduce_range=False, weight_qType=quantization.QuantType.QInt8,
            activation_qType=quantization.QuantType.QInt8, tensors_range=self.ranges(), nodes_to_quantize=[],
            nodes_to_exclude=[name for name in self.nodes if not keep(name)],
            op_types_to_quantize=list(QDQRegistry), extra_options={},
        )  # fmt: skip
        quantizer.quantize_model()
        return bytes(quantizer.model.model.SerializeToString())


class CocoFolder:
    """Images of ``shared/data/coco128``, stretched to 512 x 512, RGB 0..255."""

    def __init__(self, folder: Path) -> None:
        from examples.centernet import adapter

        self.folder, self.detector = folder, adapter(SIZE)

    def pixels(self, split: str) -> Iterator[np.ndarray]:
        """(1, 3, 512, 512) of each image of a split."""
        import json

        from PIL import Image

        for image in json.loads((self.folder / f"instances_{split}.json").read_text())["images"]:
            yield self.detector.prepare(Image.open(self.folder / image["file_name"]))[None].numpy()


class Reader(quantization.CalibrationDataReader):
    """Images as onnxruntime's calibrator takes them."""

    def __init__(self, name: str, images: Iterator[np.ndarray]) -> None:
        self.name, self.images = name, images

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image; None after the last."""
        image = next(self.images, None)
        return None if image is None else {self.name: image}


def outputs(file: bytes | Path, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the heat maps and sides of the boxes, of all images."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    given = file if isinstance(file, bytes) else str(file)
    session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    heat, sides = zip(*(session.run(["heatmap", "wh"], {name: image}) for image in images))
    return np.stack(heat), np.stack(sides)


def damage(
    form: Form, keep: Keep, images: Sequence[np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> list[float]:
    """Relative L2 distances of scores and sides from those in float."""
    got = outputs(form.int8(keep), images)
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(got, expected)]


def average_precision(form: Form, keep: Keep) -> float:
    """AP of the validation images, in per cent."""
    import contextlib
    import io

    import torch
    from PIL import Image
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder, detector = form.images.folder, form.images.detector
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(form.int8(keep), options, providers=["CPUExecutionProvider"])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "instances_val.json")
        found = []
        for image in truth.dataset["images"]:
            picture = Image.open(folder / image["file_name"])
            pixels = detector.prepare(picture)[None].numpy()
            heat, sides = map(
                torch.from_numpy, session.run(["heatmap", "wh"], {session.get_inputs()[0].name: pixels})
            )
            for left, top, right, bottom, score, kind in detector.detect((heat, sides), [picture.size])[
                0
            ].tolist():
                box = [left, top, right - left, bottom - top]
                found.append({"image_id": image["id"], "category_id": int(kind), "bbox": box, "score": score})
        done = COCOeval(truth, truth.loadRes(found), "bbox")
        done.evaluate()
        done.accumulate()
        done.summarize()
    return float(100 * done.stats[0])


def main() -> None:
    """Read the command line, measure what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["damage", "ap"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cache", type=Path, required=True)
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []
    there = {(row["form"], row["what"], row["measure"]) for row in rows}

    def add(form: str, what: str, **measures: float) -> None:
        rows.extend(
            {"form": form, "what": what, "measure": k, "value": f"{v:.4g}"} for k, v in measures.items()
        )
        print(rows[-1], flush=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["form", "what", "measure", "value"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    for tile in FORMS:
        form = Form(tile, given.shared, given.cache)
        if given.what == "ap":
            for name in MEASURED:
                if (tile, name, "AP") not in there:
                    left = within(RECIPES[name])
                    add(tile, name, AP=average_precision(form, lambda node, left=left: not left(node)))
            continue
        images = list(itertools.islice(form.images.pixels("val"), _IMAGES))
        expected = outputs(form.path, images)
        cases: dict[str, Keep] = {
            f"int8: {p}": within((p,)) for p in sorted({*map(part, form.nodes), "descriptors"})
        }
        for name, parts in RECIPES.items():
            left = within(parts)
            cases[name] = lambda node, left=left: not left(node)
        for name, keep in cases.items():
            if (tile, name, "scores") not in there:
                scores, sides = damage(form, keep, images, expected)
                add(tile, name, scores=scores, sides=sides)


if __name__ == "__main__":
    main()
