"""Gates of the previous frame: accuracy on frames of videos, and on frames made of still images.

    python benchmarks/video.py camvid --shared ../shared -o results/accuracy/video_camvid.csv
    python benchmarks/video.py stills --shared ../shared -o results/accuracy/video_stills.csv
    python benchmarks/video.py centernet --shared ../shared -o results/accuracy/video_centernet.csv

``camvid``: street scenes a second apart, the zoo's networks, mIoU of the 233 frames of two test videos. ``stills``:
each of 325 ImageNet images is a video of eleven frames that moves, grows and brightens from frame to frame and back,
and the last one, the image at rest, is judged. ``cut``: all frames before are of another image, and no stream begins.
``centernet``: the same of 128 COCO images, the AP of the last frame's boxes. At rest a frame is the picture itself, so
that SE has the AP of its plain evaluation; tiles without a state see that frame alone, motion ``any``.
A run that was cut off goes on with the next tile, or motion.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import tiledse as ts
from tiledse.evaluate.detection import CocoImages, Detection
from tiledse.evaluate.evaluation import Evaluation, ImageResult
from tiledse.evaluate.opening import TaskImages
from tiledse.evaluate.tasks import run
from tiledse.files import write_csv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples.centernet import adapter

TILES = (
    "HxW:previous", "1xW:previous+6", "1xW:previous", "1xW:previous-1", "7xW", "1xW:running+6", "1xW:running",
    "1xW:running-1",
)  # fmt: skip
ZOO = ("zoo:camvid-se", "zoo:camvid-7xW")
STREAMS, FRAMES, SWING = 25, 11, 3


class Motion(NamedTuple):
    """What changes from a frame to the next: pixels of 224, growth, light."""

    pixels: float
    growth: float
    light: float


MOTIONS = {"slow": Motion(2, 0.01, 0.02), "fast": Motion(12, 0.06, 0.15), "cut": Motion(2, 0.01, 0.02)}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is recorded already."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def camvid(args: argparse.Namespace) -> None:
    """Mean IoU on the frames of CamVid's test videos."""
    folder, rows = args.shared / "data/camvid", rows_of(args.output)
    for name in ZOO:
        network = ts.open(name)
        task = TaskImages(str(folder / "test"), "segment", masks=folder / "test_masks").open(
            network, name=name
        )
        for tile in TILES:
            if any((row["network"], row["tile"]) == (name, tile) for row in rows):
                continue
            found = ts.evaluate(network, network.se.with_tile(tile), task, frames=True)
            low, high = found.paired.drop_ci95
            cost = ts.cost(network.se.with_tile(tile)).tse
            rows.append(
                {
                    "network": name, "tile": tile, "frames": found.n, "se": f"{found.se['mIoU']:.3f}",
                    "tiled": f"{found.tse['mIoU']:.3f}", "drop": f"{found.paired.drop:.3f}", "low": f"{low:.3f}",
                    "high": f"{high:.3f}", "buffer": cost.buffer, "state": cost.state,
                }
            )  # fmt: skip
            write_csv(args.output, rows)
            print(rows[-1], flush=True)


def stills(args: argparse.Namespace) -> None:
    """Top-1 of the last frame, all streams of a batch side by side."""
    rows = rows_of(args.output)
    model = mobilenet(args.shared)
    network = ts.open(model, (3, 224, 224))
    names, labels = listed(args.shared / "data/imagenet_val1300")
    for motion in MOTIONS:
        missing = [t for t in TILES if not any((r["motion"], r["tile"]) == (motion, t) for r in rows)]
        if not missing:
            continue
        forms = {tile: ts.convert(model, network.plan.with_tile(tile)) for tile in missing}
        guesses: dict[str, list[int]] = {tile: [] for tile in ("SE", *missing)}
        for frames in batches(args.shared / "data/imagenet_val1300", names, motion):
            with torch.no_grad():
                guesses["SE"] += model(frames[-1]).argmax(1).tolist()
                for tile, form in forms.items():
                    if network.plan.with_tile(tile).previous:
                        ts.reset_frames(form)
                        for frame in frames[:-1]:
                            form(frame)
                    guesses[tile] += form(frames[-1]).argmax(1).tolist()
        for tile in missing:
            found = Evaluation(
                tuple(
                    ImageResult(name, label, a, b, a == label, b == label)
                    for name, label, a, b in zip(names, labels, guesses["SE"], guesses[tile], strict=True)
                )
            )
            low, high = found.drop_ci95
            cost = ts.cost(network.plan.with_tile(tile)).tse
            rows.append(
                {
                    "motion": motion, "tile": tile, "images": found.n, "se": f"{found.se.top1:.3f}",
                    "tiled": f"{found.tse.top1:.3f}", "drop": f"{found.drop:.3f}", "low": f"{low:.3f}",
                    "high": f"{high:.3f}", "lost": found.lost, "gained": found.gained, "agree": found.agree,
                    "buffer": cost.buffer, "state": cost.state,
                }
            )  # fmt: skip
        write_csv(args.output, rows)
        print(motion, "done", flush=True)


def mobilenet(shared: Path) -> nn.Module:
    """MobileNetV3-Small with Google's weights."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("tf_mobilenetv3_small_100")
    model.load_state_dict(load_file(shared / "models/tf_mobilenetv3_small_100.safetensors"))
    return model.eval()


def listed(folder: Path) -> tuple[list[str], list[int]]:
    """Names and labels of the images."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    some = rows[::4]
    return [row["file"] for row in some], [int(row["label"]) for row in some]


def batches(folder: Path, names: list[str], motion: str) -> Iterator[list[Tensor]]:
    """The frames of some videos, the last one the image at rest; motion turns back after SWING frames."""
    videos = paths(len(names), motion)
    for _ in range(0, len(names), STREAMS):
        frames: list[list[np.ndarray]] = [[] for _ in range(FRAMES)]
        for path in itertools.islice(videos, STREAMS):
            for place, (source, steps, angle) in enumerate(path):
                with Image.open(folder / names[source]) as image:
                    still = image.convert("RGB")
                frames[place].append(moved(still, MOTIONS[motion], steps, angle, (224, 224), 0.92))
        yield [torch.tensor(np.stack(f)).permute(0, 3, 1, 2) / 127.5 - 1 for f in frames]


def paths(count: int, motion: str) -> Iterator[list[tuple[int, float, float]]]:
    """For each image its video's frames: which image each is of, how many steps it is from rest, and the direction."""
    generator = np.random.default_rng(0)
    for number in range(count):
        angle, sign = generator.uniform(0, 2 * np.pi), generator.choice([-1.0, 1.0])
        other = (number + count // 2) % count
        yield [
            (other if motion == "cut" and back else number, sign * (SWING - abs(back % (2 * SWING) - SWING)), angle)
            for back in reversed(range(FRAMES))
        ]  # fmt: skip


def moved(
    image: Image.Image, how: Motion, steps: float, angle: float, size: tuple[int, int], part: float
) -> np.ndarray:
    """The middle of an image, so many frames away, drawn at a size: (H, W, 3) float32, 0 to 255.

    Every frame is drawn anew from a ``part`` of its pixels, so that below 1 all are equally sharp, as a camera's are.
    """
    scale, border = part * (1 + how.growth) ** steps, [2 * side // 7 for side in size]
    sides = ((border[1], border[1]), (border[0], border[0]), (0, 0))
    big = Image.fromarray(np.pad(np.asarray(image), sides, mode="reflect"))
    # The middle of the image, moved by so many of the width's 224th parts.
    left, top = (
        edge + (own - side) // 2 + side / 2 * (1 - scale) + how.pixels * size[0] / 224 * steps * direction
        for edge, own, side, direction in zip(border, image.size, size, (np.cos(angle), np.sin(angle)))
    )
    drawn = big.transform(
        size, Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(drawn, np.float32) * np.float32((1 + how.light) ** steps), 0, 255)


def centernet(args: argparse.Namespace) -> None:
    """AP of the last frame's boxes."""
    rows = rows_of(args.output)
    network = ts.open(str(args.shared / "models/centernet_mobilenetv3_075.onnx"), (3, 512, 512))
    detector = adapter((3, 512, 512))
    images = CocoImages(args.shared / "data/coco128/instances_val.json", detector)
    task = Detection(images, detector)
    plans = {tile: network.se.with_tile(tile) for tile in TILES}
    for motion in ("any", *MOTIONS):
        names = [
            tile for tile, plan in plans.items()
            if plan.previous != (motion == "any") and not any((r["motion"], r["tile"]) == (motion, tile) for r in rows)
        ]  # fmt: skip
        if not names:
            continue
        whole, tiled = network.tiled(network.se), [network.tiled(plans[name]) for name in names]
        before = itertools.repeat([]) if motion == "any" else films(images, motion)

        def shown(last: Tensor, whole=whole, tiled=tiled, motion=motion, before=before) -> Iterator[Any]:
            frames = next(before)
            yield whole(last)
            for form in tiled:
                if motion != "any":
                    network.begin(form)
                for frame in frames:
                    form(frame)
                yield form(last)

        se, *found = run(task, shown, ["SE", *names], batch_size=1).networks
        for name, boxes in zip(names, found, strict=True):
            paired, cost = task.compare(se, boxes), ts.cost(plans[name]).tse
            rows.append(
                {
                    "motion": motion, "tile": name, "images": len(boxes), "se": f"{task.score(se)['AP']:.3f}",
                    "tiled": f"{task.score(boxes)['AP']:.3f}", "drop": f"{paired.drop:.3f}",
                    "low": f"{paired.drop_ci95[0]:.3f}", "high": f"{paired.drop_ci95[1]:.3f}", "lost": paired.lost,
                    "gained": paired.gained, "agree": paired.agree, "buffer": cost.buffer, "state": cost.state,
                }
            )  # fmt: skip
        write_csv(args.output, rows)
        print(motion, "done", flush=True)


def films(images: CocoImages, motion: str) -> Iterator[list[Tensor]]:
    """For each image the frames before the last, (1, 3, 512, 512), prepared as the detector's images are."""
    for path in paths(len(images.files), motion):
        frames = []
        for source, steps, angle in path[:-1]:
            with Image.open(images.folder / images.files[source][0]) as image:
                still = image.convert("RGB")
            frame = moved(still, MOTIONS[motion], steps, angle, still.size, 1).round().astype(np.uint8)
            frames.append(images.preprocess(Image.fromarray(frame))[None])
        yield frames


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("camvid", "stills", "centernet"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ts.TiledSEWarning)
    {"camvid": camvid, "stills": stills, "centernet": centernet}[given.verb](given)
