"""A page of 20,000 rows of drawn text through PP-OCR's text detector: as a whole, and in steps.

    python examples/tall_page.py FOLDER [ROWS]       # FOLDER/tall.png: the page's ends with the boxes found

The detector is the one of the package rapidocr. Each way runs in a process of its own by ONNX Runtime, with one thread:
the whole page with plain SE, the whole page with tiles, and the tiles in steps, whose boxes must be those of the whole
page. Boxes are the connected parts of the detector's map above 0.3, grown as DB does (Liao et al., 2020, section 3.4);
one is right where its overlap with a drawn line is at least half of both together.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

import tiledse as ts
from tiledse.stream.memory import peak_resident

sys.path.insert(0, str(Path(__file__).parent))
from ocr_pages import SIDE, draw_page

TILE, ROWS = "1xW:running+8", 20000
KINDS = ("plain", "small", "plain", "dense")


def draw(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """A page (rows, 640, 3) and its mask, pages of several kinds below each other."""
    parts = [draw_page(KINDS[number % len(KINDS)], number) for number in range(-(-rows // SIDE))]
    page, mask = (np.concatenate([np.asarray(part[i]) for part in parts])[:rows] for i in range(2))
    return page, mask


def numbers(pixels: np.ndarray) -> np.ndarray:
    """As the detector takes rows: OpenCV's order of channels, -1..1."""
    scaled = pixels[:, :, ::-1].astype(np.float32) / np.float32(127.5) - 1
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def boxes_of(found: np.ndarray, grow: float = 0.0) -> np.ndarray:
    """Boxes (n, 4) of left, top, right, bottom of the connected parts of a map."""
    boxes = []
    for rows, columns in ndimage.find_objects(ndimage.label(found)[0]):
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        if min(tall, wide) < 3:
            continue
        more = grow * tall * wide / (2 * (tall + wide))
        boxes.append((columns.start - more, rows.start - more, columns.stop + more, rows.stop + more))
    return np.array(boxes).reshape(-1, 4)


def right(found: np.ndarray, drawn: np.ndarray) -> tuple[float, float]:
    """Shares of the drawn boxes that were found, and of the found boxes that are right."""
    sides = [
        np.minimum(found[:, None, i + 2], drawn[None, :, i + 2])
        - np.maximum(found[:, None, i], drawn[None, :, i])
        for i in (0, 1)
    ]
    both = np.prod(np.clip(sides, 0, None), 0)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (found, drawn)]
    good = both / (areas[0][:, None] + areas[1][None] - both) >= 0.5
    return float(good.any(0).mean()), float(good.any(1).mean())


def run(how: str, folder: Path) -> None:
    """One way, in this process: the map as bytes, and what it took."""
    import onnxruntime

    pixels = np.load(folder / "page.npy", mmap_mode="r")
    onnxruntime.get_available_providers()
    with peak_resident() as grown:
        began = time.perf_counter()
        if how == "steps":
            runner = ts.StepRunner(folder / "step.onnx", len(pixels), threads=1)
            parts = []
            for top in range(0, len(pixels), runner.header.rows):
                parts.append(runner.push(numbers(np.array(pixels[top : top + runner.header.rows])))["output"])
            parts.append(runner.finish()["output"])
            found = np.concatenate([(part[0, 0] > 0.3) for part in parts if part is not None])
        else:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(folder / f"{how}.onnx", options)
            image = numbers(np.array(pixels))
            found = session.run(None, {session.get_inputs()[0].name: image})[0][0, 0] > 0.3
        seconds = time.perf_counter() - began
    np.save(folder / f"{how}.npy", np.packbits(found, 1))
    print(json.dumps({"seconds": seconds, "bytes": grown()}))


def main(folder: Path, rows: int) -> None:
    """Draw, export, run each way, and compare."""
    import rapidocr

    folder.mkdir(parents=True, exist_ok=True)
    page, mask = draw(rows)
    np.save(folder / "page.npy", page)
    network = ts.open(Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_det_small.onnx", (3, SIDE, SIDE))
    plan = network.plan.with_tile(TILE)
    print(f"{network.name}, tile {TILE}, a page of {rows} x {SIDE}")
    ts.export_step(network, plan, folder / "step.onnx", rows=128, force=True)
    ts.write(network, plan, folder / "tiles.onnx", ts.Form(force=True))
    ts.write(network, network.plan, folder / "whole.onnx", ts.Form(force=True))
    drawn, boxes = boxes_of(mask > 0), {}
    print(f"{'':22}{'seconds':>8}{'MB':>8}{'boxes':>8}{'lines found':>13}{'boxes right':>13}")
    for how, name in (
        ("whole", "whole page, SE"),
        ("tiles", "whole page, tiles"),
        ("steps", "in steps, tiles"),
    ):
        made = subprocess.run(
            [sys.executable, __file__, "--run", how, str(folder)], capture_output=True, text=True, check=False
        )
        if made.returncode:
            print(f"{name:22} failed: {(made.stderr.splitlines() or ['no memory'])[-1]}")
            continue
        record = json.loads(made.stdout)
        found = np.unpackbits(np.load(folder / f"{how}.npy"), 1)
        boxes[how] = boxes_of(found, grow=1.5)
        recall, precision = right(boxes[how], drawn)
        took = f"{record['seconds']:8.1f}{record['bytes'] / 1e6:8.0f}"
        print(f"{name:22}{took}{len(boxes[how]):8}{recall:13.1%}{precision:13.1%}")
    if "tiles" in boxes:
        same = np.array_equal(boxes["tiles"], boxes["steps"])
        print("boxes of the steps and of the whole page with tiles:", "the same" if same else "NOT the same")
        if not same:
            raise SystemExit(1)
    picture(page, boxes["steps"], folder / "tall.png")


def picture(page: np.ndarray, boxes: np.ndarray, path: Path) -> None:
    """The first and the last rows side by side, with their boxes."""
    tall, sides = 900, []
    for top in (0, max(0, len(page) - tall)):
        image = Image.fromarray(page[top : top + tall])
        pen = ImageDraw.Draw(image)
        for left, up, end, down in boxes:
            if up < top + tall and down > top:
                pen.rectangle((left, up - top, end, down - top), outline=(220, 0, 60), width=2)
        sides.append(image)
    both = Image.new("RGB", (2 * SIDE + 10, tall), "white")
    for i, image in enumerate(sides):
        both.paste(image, (i * (SIDE + 10), 0))
    both.save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], Path(sys.argv[3]))
    elif len(sys.argv) in (2, 3):
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else ROWS)
    else:
        print("usage: python examples/tall_page.py FOLDER [ROWS]", file=sys.stderr)
        sys.exit(2)
