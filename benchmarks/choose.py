"""Accuracy kept without retraining: running strips, calibration, searched plans; on images not used for any choice.

    python benchmarks/choose.py mobilenet --shared ../shared -o results/accuracy/choose --cache DIR
    python benchmarks/choose.py centernet --shared ../shared -o results/accuracy/choose --cache DIR
    python benchmarks/choose.py centernet -o results/accuracy/choose --draw        # the recorded figures, as a picture

mobilenet: 1300 ImageNet validation images, cut into two halves by numpy's generator with seed 0. Each half is judged
with the plans and numbers chosen on the other half (400 images to calibrate, 250 to choose), and both are counted
together. centernet: chosen on 128 images of COCO train2017 (80 to calibrate, 48 to choose, seed 0; no label is used),
judged on 128 of val2017. Each block alone is measured on the images to choose with (mobilenet: on 125 of them); plans
are calibrated block after block, on what the earlier tiled blocks give. Each step is kept in --cache when it is done,
and a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import re
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from tiledse import Tile
from tiledse.choose.budget import gate_buffer
from tiledse.choose.cache import Evaluations
from tiledse.choose.calibration import calibrate, calibrate_alone
from tiledse.choose.evaluation import Evaluated, Evaluator
from tiledse.choose.exact import best_choices
from tiledse.choose.search import Found, only, options_of
from tiledse.correction import Correction
from tiledse.data.images import ListedImages
from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.classification import Classification
from tiledse.evaluate.detection import CocoImages, Detection
from tiledse.evaluate.statistics import bootstrap_interval, resampled_weights
from tiledse.evaluate.tasks import Paired
from tiledse.files import write_csv, written_whole
from tiledse.onnx import load
from tiledse.onnx.network import OnnxNetwork
from tiledse.onnx.probe import Matrices
from tiledse.report.choose import draw_front

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples.centernet import adapter

HEIGHTS = (1, 2, 3, 4, 7, 14, 28)
CALIBRATED = ("1xW:running", "3xW:running", "7xW:running", "7xW")


def subset(images: ListedImages, chosen: np.ndarray) -> ListedImages:
    return ListedImages(
        images.folder, [images.files[int(i)] for i in chosen], images.preprocess, images.classes
    )


class Sliding(nn.Module):
    """TLC's local mean (Chu et al., "Improving image restoration by revisiting global information aggregation", 2022):
    a window of k rows that moves by one row; at the edges the outermost window is repeated. Here as wide as the map."""

    def __init__(self, probe, plan, k):
        super().__init__()
        self.probe, self.given = probe, probe.feeds(plan)
        for number, block in enumerate(plan.blocks):
            h, tall = block.height, min(k, block.height)
            window = np.zeros((h, h), np.float32)
            for row in range(h):
                start = min(max(row - (tall - 1) // 2, 0), h - tall)
                window[row, start : start + tall] = 1 / tall
            ones, zeros = (np.full((block.channels, h, 1), v, np.float32) for v in (1, 0))
            for what, array in Matrices(window, window, ones, zeros, zeros)._asdict().items():
                self.given[f"probe/{number}/{what}"] = array

    def forward(self, x):
        outputs = self.probe.run(x.cpu().numpy(), self.given, self.probe.outputs)
        given = tuple(torch.from_numpy(out) for out in outputs)
        return given[0] if len(given) == 1 else given


def no_attention(network, images):
    """Every descriptor at its mean over the images: constant gates."""
    plan = network.se.with_tile("1xW")
    look = network.rows(network.se, range(len(plan)))
    parts = [look(batch) for batch in images()]
    corrections = []
    for number, block in enumerate(plan.blocks):
        mean = np.concatenate([p[number] for p in parts]).mean((0, 2))[:, None]
        flat = np.zeros((block.channels, block.height), np.float32)
        corrections.append(Correction(flat, None, flat + mean, block.height, network.weights))
    return replace(plan, corrections=tuple(corrections))


def searched(network, options, divergences, budgets):
    """The choice of least summed divergence under each budget."""
    plan = network.se
    table = [
        [(b.calls * t.buffer(b.channels, b.height, b.width), d) for t, d in zip(tiles, costs)]
        for b, tiles, costs in zip(plan.blocks, options, divergences)
    ]
    choices = best_choices(table)
    found = {}
    for name, budget in budgets.items():
        best = [c for c in choices if c.buffer <= budget]
        if best:
            tiles = tuple(own[o] for own, o in zip(options, best[-1].options))
            found[name] = (replace(plan, tiles=tiles, corrections=()), best[-1].cost)
    return found


def choose(network, fit_images, task, few, batch, cache, log, heights):
    """All plans of one fold, from images that it is not judged on."""
    plan = network.se

    def inputs():
        for one in fit_images.batches(batch):
            yield one.inputs

    tiles = [Tile(h, None, "running") for h in heights]
    options = options_of(plan, tiles)
    evaluator = Evaluator(network, task, Evaluations(cache), few=few, batch_size=batch)
    alone_fits = calibrate_alone(network, options, inputs)
    log("calibrated each block alone")

    divergences = {}
    for kind in ("as is", "calibrated"):
        plans = [
            only(plan, n, t, alone_fits[n][o] if kind == "calibrated" else None)
            for n, own in enumerate(options)
            for o, t in enumerate(own)
        ]
        flat = iter(
            evaluator.divergences(
                plans, lambda done, total, kind=kind: log(f"alone, {kind}: {done} of {total}")
            )
        )
        divergences[kind] = [[next(flat) for _ in own] for own in options]
    seven = gate_buffer(plan.with_tile("7xW"))
    budgets = {"at 7xW's buffer": seven, "at a seventh": seven // 7, "at half": seven // 2}
    forms = {"gates of the mean descriptor": no_attention(network, inputs)}
    for text in ("1xW", "3xW", "7xW", "1xW:running", "3xW:running", "7xW:running", "7xW:upper", "7xW:middle"):
        forms[text] = plan.with_tile(text)
    for kind, costs in divergences.items():
        for name, (found, cost) in searched(network, options, costs, budgets).items():
            log(f"searched {name}, {kind}: {[str(t) for t in found.tiles]}, summed divergence {cost:.4g}")
            if kind == "as is":
                forms[f"searched {name}"] = found
            else:
                forms[f"searched {name}, calibrated"] = calibrate(network, found, inputs)
    for text in CALIBRATED:
        forms[f"{text}, calibrated"] = calibrate(network, plan.with_tile(text), inputs)
        log(f"calibrated {text}")
    options_record = [
        {"block": b.name, "tiles": [str(t) for t in own], **{k: d[n] for k, d in divergences.items()}}
        for n, (b, own) in enumerate(zip(plan.blocks, options))
    ]
    return forms, options_record


def judge(network, module, task, images, batch):
    results = []
    with torch.no_grad():
        for one in images.batches(batch):
            output = module(one.inputs)
            results += task.judge(one, task.targets(one), output, "TSE")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=["mobilenet", "centernet"])
    parser.add_argument("--shared", type=Path, help="folder with models and data")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--cache", type=Path, help="folder for what is kept between runs")
    parser.add_argument("--draw", action="store_true", help="only draw what is recorded in the folder")
    parser.add_argument(
        "--share", type=int, default=0, help="take every other step, from this one; write nothing"
    )
    parser.add_argument(
        "--shares", type=int, default=1, help="processes that share the work over one --cache"
    )
    args = parser.parse_args()
    if args.draw:
        draw(args.output / f"{args.network}.json")
        return
    if args.shared is None or args.cache is None:
        parser.error("--shared and --cache are needed to measure")
    torch.set_num_threads(1)
    started = time.time()

    def log(text):
        print(f"{time.time() - started:7.1f} s  {text}", file=sys.stderr, flush=True)

    args.cache.mkdir(parents=True, exist_ok=True)
    if args.network == "mobilenet":
        network = OnnxNetwork(
            load(args.shared / "models/tf_mobilenetv3_small_100_dynamo.onnx"), (3, 224, 224)
        )
        prepare = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, kind="crop")
        images = open_images(args.shared / "data/imagenet_val1300", prepare)
        task = Classification(images)
        drawn = np.random.default_rng(0).permutation(len(images.files))
        halves = drawn[:650], drawn[650:]
        folds = [(halves[1 - i][:400], halves[1 - i][400:], halves[i]) for i in (0, 1)]
        batch, few, heights = 16, 125, HEIGHTS
        sets = [
            (subset(images, a), Classification(subset(images, b)), subset(images, c)) for a, b, c in folds
        ]
        order = np.concatenate([c for _, _, c in folds])
    else:
        network = OnnxNetwork(load(args.shared / "models/centernet_mobilenetv3_075.onnx"), (3, 512, 512))
        detector = adapter((3, 512, 512))
        images = CocoImages(args.shared / "data/coco128/instances_val.json", detector)
        other = CocoImages(args.shared / "data/coco128/instances_train.json", detector)
        task = Detection(images, detector)
        drawn = np.random.default_rng(0).permutation(len(other.files))
        batch, few, heights = 1, None, (1, 2, 4, 7, 14)
        sets = [(subset(other, drawn[:80]), Classification(subset(other, drawn[80:])), images)]
        order = np.arange(len(images.files))
    chosen = []
    for number, (fit_images, choice, _) in enumerate(sets):
        kept = args.cache / f"{args.network}-forms-{number}.pickle"
        if not kept.exists() and len(sets) > 1 and number % args.shares != args.share:
            continue
        if not kept.exists():
            forms = choose(network, fit_images, choice, few, batch, args.cache, log, heights)
            with written_whole(kept) as part:
                part.write_bytes(pickle.dumps(forms))
        chosen.append(pickle.loads(kept.read_bytes()))
        log(f"fold {number}: chosen")
    results = {}
    first = (
        "7xW",
        "searched at a seventh, calibrated",
        "searched at 7xW's buffer, calibrated",
        "7xW:running",
    )
    names = list(dict.fromkeys(["SE", *first, *chosen[0][0], "TLC 7 rows"]))
    for number, name in enumerate(names):
        if args.shares > 1 and number % args.shares != args.share:
            continue
        kept = args.cache / f"{args.network}-{name}.pickle".replace("/", "")
        if not kept.exists():
            rows = []
            for (forms, _), (_, _, test) in zip(chosen, sets):
                if name == "TLC 7 rows":
                    module = Sliding(network.probe, network.se, 7)
                else:
                    module = network.tiled(network.se if name == "SE" else forms[name])
                rows += judge(network, module, task, test, batch)
            with written_whole(kept) as part:
                part.write_bytes(pickle.dumps(rows))
        rows = pickle.loads(kept.read_bytes())
        results[name] = [rows[int(i)] for i in np.argsort(order)]
        log(f"{name}: {task.score(results[name])}")
    if args.shares == 1:
        record = []  # what search would keep: the form that is nearest to SE on the images to choose with
        for (forms, _), (_, choice, _) in zip(chosen, sets):
            evaluator = Evaluator(network, choice, Evaluations(args.cache), batch_size=batch)
            found = [n for n in forms if "searched" in n and "seventh" not in n]
            far = evaluator.divergences([forms[n] for n in found])
            record.append(dict(zip(found, far)))
        write(args, network, task, chosen, results, record)


def drawn_again(task, rows):
    """AP over bootstrap samples, and of each image alone: what ``Detection.compare`` compares, once for each form."""
    matches = task.matches(rows)
    samples = matches.average_precision(resampled_weights(matches.images, task.resamples))
    return samples, matches.average_precision(np.eye(matches.images)), matches.statistics["AP"]


def pair(task, known, results, first, second):
    if task.name != "detect":
        return task.compare(results[first], results[second])
    for name in (first, second):
        if name not in known:
            known[name] = drawn_again(task, results[name])
    (a, a_alone, a_score), (b, b_alone, b_score) = known[first], known[second]
    low, high, p_value = bootstrap_interval(a - b)
    lost, gained = int((b_alone < a_alone - 1e-9).sum()), int((b_alone > a_alone + 1e-9).sum())
    return Paired(len(a_alone) - lost - gained, lost, gained, p_value, a_score - b_score, (low, high))


def write(args, network, task, chosen, results, choice_divergence):
    lines, known = [], {}
    for name, rows in results.items():
        paired = pair(task, known, results, "SE", name)
        plans = [forms.get(name, network.se) for forms, _ in chosen]
        lines.append(
            {
                "form": name,
                "buffer": ""
                if "TLC" in name
                else "/".join(str(b) for b in dict.fromkeys(map(gate_buffer, plans))),
                "numbers": "/".join(str(sum(c.numbers for c in p.corrections if c)) for p in plans[:1]),
                task.metric: round(task.score(rows)[task.metric], 3),
                "drop": round(paired.drop, 3),
                "drop_low": round(paired.drop_ci95[0], 3),
                "drop_high": round(paired.drop_ci95[1], 3),
                "lost": paired.lost,
                "gained": paired.gained,
            }
        )
    pairs = []
    for first, second in (
        ("1xW", "1xW:running"), ("3xW", "3xW:running"), ("7xW", "7xW:running"),
        ("7xW", "searched at 7xW's buffer"), ("7xW", "searched at 7xW's buffer, calibrated"),
        ("7xW", "searched at a seventh"), ("7xW", "searched at a seventh, calibrated"),
        ("1xW:running", "1xW:running, calibrated"), ("3xW:running", "3xW:running, calibrated"),
        ("7xW:running", "7xW:running, calibrated"), ("7xW", "7xW, calibrated"),
    ):  # fmt: skip
        if first in results and second in results:
            paired = pair(task, known, results, first, second)
            base = pair(task, known, results, "SE", first).drop
            own = pair(task, known, results, "SE", second).drop
            pairs.append(
                {
                    "first": first, "second": second, "drop_first": base, "drop_second": own,
                    "share": own / base if base else None, "second_below_first": paired.drop,
                    "ci95": list(paired.drop_ci95), "p_value": paired.p_value,
                }
            )  # fmt: skip
    args.output.mkdir(parents=True, exist_ok=True)
    write_csv(args.output / f"{args.network}.csv", lines)
    record = {
        "command": f"python benchmarks/choose.py {args.network} --shared ../shared -o results/accuracy/choose"
        " --cache DIR",
        "versions": {
            name: version(name) for name in ("torch", "onnxruntime", "onnx", "numpy", "pycocotools")
        },
        "python": platform.python_version(),
        "n": len(next(iter(results.values()))),
        "metric": task.metric,
        "split": __doc__.split("\n\n")[2].replace("\n", " "),
        "forms": lines,
        "pairs": pairs,
        "chosen": [
            {name: [str(t) for t in plan.tiles] for name, plan in forms.items() if "searched" in name}
            for forms, _ in chosen
        ],
        "choice_divergence": choice_divergence,
        "alone": [options for _, options in chosen],
    }
    with written_whole(args.output / f"{args.network}.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    draw(args.output / f"{args.network}.json")


def draw(path: Path) -> None:
    """The recorded forms as ``tiledse search --plot`` draws them; each is one point, from the images to judge on."""
    record = json.loads(path.read_text())
    points = []
    for form in record["forms"]:
        name, _, suffix = form["form"].partition(", ")
        uniform = re.fullmatch(r"[137]xW(:running)?", name)
        if not (uniform or name.startswith("searched") or name == "SE"):
            continue
        tile = Tile.parse(name) if uniform else Tile(None, None)
        bounds = (form["drop_low"], form["drop_high"])
        points.append(
            SimpleNamespace(
                kind="uniform" if uniform else "front",
                calibrated=suffix == "calibrated",
                plan=SimpleNamespace(tiles=(tile,)),
                buffer=int(str(form["buffer"]).partition("/")[0]),
                measured=Evaluated(0.0, record["n"], {}, form["drop"], bounds),
                name=form["form"],
            )
        )
    points.sort(key=lambda p: p.buffer)
    chosen = next(p for p in points if p.name == "searched at 7xW's buffer, calibrated")
    found = Found(tuple(points), chosen, record["metric"], record["n"], (), 0)
    draw_front(found, path.with_suffix(".png"), f"{path.stem}, other images than those chosen on")


if __name__ == "__main__":
    main()
