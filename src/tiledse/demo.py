"""The main job on a real network from a package: rapidocr's text detector with tiles, read with the whole OCR pipeline.

Nothing is downloaded and nothing has to be filled in: the pages are drawn here, so their text is known.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .cost import cost
from .errors import TiledSEError
from .extras import missing
from .files import written_whole
from .tile import Tile

PAGE = (1280, 960)  # rows, columns: multiples of 32, which the detector takes as they are
_LINES = (
    "The quick brown fox jumps over the lazy dog.",
    "Tiled squeeze-and-excite lets a network stream:",
    "each strip of rows is gated by its own mean, so",
    "no layer has to wait until the whole map is there.",
    "Invoice 2041-7, due on 28 March, total 1,296.50",
    "PACK MY BOX WITH FIVE DOZEN LIQUOR JUGS",
    "Water boils at 100 degrees, freezes at 0.",
    "Sphinx of black quartz, judge my vow!",
    "Row 17, seat 4B, gate 22, boarding 06:45",
    "A buffer of seven rows is all that it holds.",
    "Please return this form to room 318.",
    "How vexingly quick daft zebras jump",
    "Serial number QX-90341-77-A, rev. 12",
    "Do not bend, fold, spindle or mutilate.",
    "Chapter 5: On the measurement of small things",
    "The five boxing wizards jump quickly.",
    "Kilometres 12, 24, 36, 48 and 60 remain.",
    "Glass, paper and metal are collected on Friday.",
)


# What to do with one's own file, as the demo ends.
NEXT = (
    "tiledse find net.onnx                              # its SE blocks, and what is none and why",
    "tiledse report net.onnx -o report.html             # one page: what they hold, with SE and with tiles",
    "tiledse convert net.onnx --tile 7xW -o tse.onnx    # the same weights with tiles, tried before it is written",
    "tiledse eval net.onnx --tile 7xW --data DIR        # its accuracy on your labelled images, before and after",
)


@dataclass(frozen=True)
class Page:
    """A drawn page: the picture, and what stands where."""

    picture: Image.Image
    lines: tuple[tuple[str, tuple[float, float, float, float]], ...]


@dataclass(frozen=True)
class Reading:
    """What OCR read on one page: boxes of four corners, and the text in each."""

    boxes: tuple[tuple[tuple[float, float], ...], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Demonstration:
    """What the demo measured.

    Attributes:
        blocks: SE blocks that were found.
        tile: The tile that they got.
        page: Rows and columns of a page.
        buffer: Elements that the gates hold, before and after.
        characters: Characters on the pages.
        right: Characters read right, before and after.
        boxes: Boxes found, before and after.
        seconds: Median time of the detector on a page, before and after.
        identity: See ``onnx.Verification``.
        worst_block: See ``onnx.Verification``.
        files: What was written.
    """

    blocks: int
    tile: str
    page: tuple[int, int]
    buffer: tuple[int, int]
    characters: int
    right: tuple[int, int]
    boxes: tuple[int, int]
    seconds: tuple[float, float]
    identity: float
    worst_block: float
    files: tuple[str, ...]

    def __str__(self) -> str:
        size = f"{self.page[0]}x{self.page[1]}"
        saved = 100 * (1 - self.buffer[1] / self.buffer[0])
        rows = [
            ("", "SE", f"TSE {self.tile}"),
            ("gate buffer, elements", f"{self.buffer[0]:,}", f"{self.buffer[1]:,}"),
            (f"characters right, of {self.characters:,}", f"{self.right[0]:,}", f"{self.right[1]:,}"),
            ("boxes", f"{self.boxes[0]:,}", f"{self.boxes[1]:,}"),
            ("detector, s a page", f"{self.seconds[0]:.2f}", f"{self.seconds[1]:.2f}"),
        ]
        table = [f"{a:34}{b:>16}{c:>16}" for a, b, c in rows]
        return "\n".join(
            [
                f"PP-OCRv6 text detector: {self.blocks} SE blocks, pages of {size} pixels",
                *table,
                f"buffer {saved:.1f} % less; time: ONNX Runtime on the CPU, median of interleaved runs",
                f"verified: {self.identity:.1e} to the input network with HxW tiles again, "
                f"{self.worst_block:.1e} block by block to PyTorch",
                *(f"wrote {file}" for file in self.files),
                "your own network next, where these say the file (package.module:factory for one of PyTorch):",
                *(f"  {line}" for line in NEXT),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        pairs = ("buffer", "right", "boxes", "seconds")
        record: dict[str, Any] = {k: {"se": getattr(self, k)[0], "tse": getattr(self, k)[1]} for k in pairs}
        return {
            "blocks": self.blocks, "tile": self.tile, "page": list(self.page), "characters": self.characters, **record,
            "max_rel_diff_identity": self.identity, "max_rel_diff_blocks": self.worst_block, "files": list(self.files),
        }  # fmt: skip


def run_demo(
    folder: str | Path,
    tile: str | Tile = "7xW",
    pages: int = 4,
    progress: Callable[[str], None] = lambda line: None,
) -> Demonstration:
    """Find, convert, verify and read.

    Args:
        folder: Where the .onnx and the picture go; made if it is missing.
        tile: The tile of every block.
        pages: How many pages are drawn.
        progress: Called with a line before each step.

    Raises:
        TiledSEError: rapidocr is not installed, or the folder cannot be written.
    """
    try:
        import rapidocr
    except ImportError as error:
        raise missing("the demo needs", "rapidocr", error=error) from error
    from . import onnx as room

    tile = Tile.parse(tile)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TiledSEError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    models = Path(rapidocr.__file__).parent / "models"
    detector = models / "PP-OCRv6_det_small.onnx"
    if not detector.is_file():
        raise TiledSEError(f"this rapidocr holds no {detector.name}; the demo was made for rapidocr 3.10.0")
    progress(f"finding the SE blocks of {detector.name}")
    source = room.load(detector)
    plan = room.find(source, (3, *PAGE)).with_tile(tile)
    costs = cost(plan)
    progress(f"converting {len(plan)} blocks to {tile} and verifying")
    tiled = room.convert(source, plan)
    smaller = (3, 320, 256)
    report = room.verify(source, tiled, room.find(source, smaller).with_tile(tile))
    target = folder / "pp-ocrv6_det_tse.onnx"
    room.save(tiled, target, force=True)
    drawn = [draw_page(i) for i in range(pages)]
    readings = []
    for name, path in (("SE", detector), ("TSE", target)):
        progress(f"reading {pages} pages with the {name} detector")
        readings.append(_read(path, [page.picture for page in drawn]))
    progress("timing the detectors")
    seconds = _time([room.session(m) for m in (source, tiled)], drawn[0].picture)
    picture = folder / "pages.png"
    with written_whole(picture) as part:
        show(drawn[0], readings[0][0], readings[1][0], str(tile)).save(part, format="PNG")
    characters = sum(len(text.replace(" ", "")) for page in drawn for text, _ in page.lines)
    right = [sum(count_right(p, r) for p, r in zip(drawn, reading)) for reading in readings]
    boxes = [sum(len(r.boxes) for r in reading) for reading in readings]
    return Demonstration(
        len(plan), str(tile), PAGE, (costs.se.buffer, costs.tse.buffer), characters, (right[0], right[1]),
        (boxes[0], boxes[1]), seconds, report.identity, report.worst_block, (str(target), str(picture)),
    )  # fmt: skip


def draw_page(number: int) -> Page:
    """A page of known text: lines of several sizes, faint and strong, on a tinted ground with noise.

    Small and faint enough that not all of it can be read, so that a worse detector would show.
    """
    random = np.random.default_rng(number)
    height, width = PAGE
    ground = random.integers(190, 256, 3)
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in ground))
    draw = ImageDraw.Draw(picture)
    lines: list[tuple[str, tuple[float, float, float, float]]] = []
    y = 30.0
    while y < height - 60:
        for left in (24.0, width / 2 + 12):
            text = _LINES[int(random.integers(len(_LINES)))]
            font = ImageFont.load_default(int(random.integers(9, 20)))
            box = draw.textbbox((left + float(random.integers(0, 20)), y), text, font=font)
            faint = 1 - float(random.uniform(0.06, 0.6))
            if box[2] < left + width / 2 - 24:
                draw.text(box[:2], text, font=font, fill=tuple(int(v * faint) for v in ground), anchor="lt")
                lines.append((text, box))
        y += float(random.integers(30, 42))
    noise = random.normal(0, 8, (height, width, 3))
    noisy = np.clip(np.asarray(picture, np.float64) + noise, 0, 255).astype(np.uint8)
    return Page(Image.fromarray(noisy), tuple(lines))


def _read(detector: Path, pictures: list[Image.Image]) -> list[Reading]:
    """The whole pipeline of rapidocr on some pages, with this detector."""
    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    engine = RapidOCR(params={"Det.model_path": str(detector), "Global.log_level": "error"})
    readings = []
    for picture in pictures:
        # rapidocr takes arrays in OpenCV's order of channels.
        result = engine(np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]))
        boxes = () if result.boxes is None else result.boxes
        corners = tuple(tuple((float(x), float(y)) for x, y in box) for box in boxes)
        readings.append(Reading(corners, tuple(result.txts or ())))
    return readings


def count_right(page: Page, reading: Reading) -> int:
    """Characters read right: for each line, its length less the edit distance to what was read in its place.

    Spaces are left out, since OCR does not settle how wide a gap is one.
    """
    right = 0
    for text, (left, top, end, bottom) in page.lines:
        here = [
            (min(x for x, _ in box), read)
            for box, read in zip(reading.boxes, reading.texts)
            if top <= sum(y for _, y in box) / len(box) <= bottom
            and left <= sum(x for x, _ in box) / len(box) <= end
        ]
        wanted, got = text.replace(" ", ""), "".join(read for _, read in sorted(here)).replace(" ", "")
        right += max(0, len(wanted) - edit_distance(wanted, got))
    return right


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements from one text to another (Levenshtein).

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def _time(sessions: list[Any], picture: Image.Image, runs: int = 5) -> tuple[float, float]:
    """Median seconds of two detectors on one page, their runs interleaved."""
    x = (np.asarray(picture, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
    times: list[list[float]] = [[], []]
    for i in range(runs + 1):
        for each, opened in zip(times, sessions):
            start = time.perf_counter()
            opened.run(None, {opened.get_inputs()[0].name: x})
            if i:  # the first run of each allocates
                each.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def show(page: Page, se: Reading, tse: Reading, tile: str) -> Image.Image:
    """The page twice: with the boxes of SE on the left, those of TSE on the right."""
    width, height = page.picture.size
    head = 48
    sheet = Image.new("RGB", (2 * width + 12, height + head), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, reading, ink) in enumerate((("SE", se, (0, 90, 200)), (f"TSE {tile}", tse, (200, 60, 0)))):
        left = i * (width + 12)
        sheet.paste(page.picture, (left, head))
        text = f"{title}: {len(reading.boxes)} boxes, {count_right(page, reading)} characters right"
        draw.text((left + 12, 8), text, font=ImageFont.load_default(28), fill=ink)
        for box in reading.boxes:
            draw.polygon([(left + x, head + y) for x, y in box], outline=ink, width=3)
    return sheet
