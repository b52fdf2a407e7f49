"""Sliding strips without retraining: each row by its own gate, as is, calibrated and searched, beside strips and TLC.

    python benchmarks/sliding.py mobilenet --shared ../shared -o results/accuracy/choose --cache DIR
    python benchmarks/sliding.py centernet --shared ../shared -o results/accuracy/choose --cache DIR
    python benchmarks/sliding.py centernet -o results/accuracy/choose --draw        # the recorded figures, as a picture

Images and splits are those of ``choose.py``. Uniform tiles as they are were chosen on no image of this set; calibrated
and searched forms are judged on images that nothing was fitted to or chosen on. Each form is kept in --cache when it is
done, and a run that was cut off goes on. ``--only uniform`` leaves out what is fitted and chosen.
"""

from __future__ import annotations

import argparse
import json
import pickle
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tiledse import Tile
from tiledse.choose.budget import gate_buffer
from tiledse.choose.cache import Evaluations
from tiledse.choose.calibration import calibrate
from tiledse.choose.evaluation import Evaluator
from tiledse.choose.search import default_tiles, only, options_of
from tiledse.cost import cost
from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.classification import Classification
from tiledse.evaluate.detection import CocoImages, Detection
from tiledse.files import write_csv, written_whole
from tiledse.onnx import load
from tiledse.onnx.network import OnnxNetwork

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.choose import Sliding, drawn_again, judge, pair, searched, subset
from examples.centernet import adapter

UNIFORM = (
    "7xW", "7xW:running", "1xW:running+6", "2xW:running+5", "1xW:window-6+6", "1xW:window-21+6",
    "3xW", "3xW:running", "1xW:running+2", "2xW:running+1", "1xW:window-6+2",
    "1xW:running+5", "1xW:running+4", "1xW:running+3", "1xW:running+1", "1xW:running", "1xW:running-1",
)  # fmt: skip
# Rows of TLC's window: as many rows of look-ahead as 1xW:running+6 and +2 in the middle, and the paper's seven.
TLC = (13, 7, 5)
CALIBRATED = {"mobilenet": ("1xW:running+2",), "centernet": ("1xW:running+2",)}
# Budgets of a search: the buffers of strips of so many rows; and those whose plan is calibrated as well.
ROWS = {"mobilenet": (7, 4, 3), "centernet": (7, 5, 3)}
SEARCHED_AND_CALIBRATED = ("3 rows",)
# CenterNet runs longer: fewer tiles are tried, and each block alone is measured on fewer images.
FEWER = tuple(Tile.parse(t) for t in ("1xW:running", *(f"1xW:running+{n}" for n in (1, 2, 3, 4, 6, 9, 13))))


def opened(args):
    """The network, the images to judge on, and for each fold those to fit on, to choose on and to judge on."""
    if args.network == "mobilenet":
        path, size = args.shared / "models/tf_mobilenetv3_small_100_dynamo.onnx", (3, 224, 224)
        network = OnnxNetwork(load(path), size)
        prepare = Preprocessing(size, (0.5,) * 3, (0.5,) * 3, kind="crop")
        images = open_images(args.shared / "data/imagenet_val1300", prepare)
        drawn = np.random.default_rng(0).permutation(len(images.files))
        halves = drawn[:650], drawn[650:]
        folds = [(halves[1 - i][:400], halves[1 - i][400:], halves[i]) for i in (0, 1)]
        sets = [
            (subset(images, a), Classification(subset(images, b)), subset(images, c)) for a, b, c in folds
        ]
        order = np.concatenate([c for _, _, c in folds])
        return network, Classification(images), sets, order, 16, 64, default_tiles()
    size = (3, 512, 512)
    network, detector = (
        OnnxNetwork(load(args.shared / "models/centernet_mobilenetv3_075.onnx"), size),
        adapter(size),
    )
    images = CocoImages(args.shared / "data/coco128/instances_val.json", detector)
    other = CocoImages(args.shared / "data/coco128/instances_train.json", detector)
    drawn = np.random.default_rng(0).permutation(len(other.files))
    sets = [(subset(other, drawn[:80]), Classification(subset(other, drawn[80:])), images)]
    return network, Detection(images, detector), sets, np.arange(len(images.files)), 1, 12, FEWER


def choose(name, network, fit_images, task, few, batch, tiles, cache, log):
    """Calibrated and searched plans of one fold, from images that it is not judged on."""
    plan = network.se
    read = [one.inputs for one in fit_images.batches(batch)]

    def inputs():
        return iter(read)

    forms = {}
    for text in CALIBRATED[name]:
        forms[f"{text}, calibrated"] = calibrate(network, plan.with_tile(text), inputs)
        log(f"calibrated {text}")
    options = options_of(plan, tiles)
    evaluator = Evaluator(network, task, Evaluations(cache), few=few, batch_size=batch)
    plans = [only(plan, n, t) for n, own in enumerate(options) for t in own]
    flat = iter(evaluator.divergences(plans, lambda done, total: log(f"alone: {done} of {total}")))
    divergences = [[next(flat) for _ in own] for own in options]
    budgets = {f"{k} rows": gate_buffer(plan.with_tile(f"{k}xW")) for k in ROWS[name]}
    for budget, (found, summed) in searched(network, options, divergences, budgets).items():
        log(f"searched, {budget}: {[str(t) for t in found.tiles]}, summed divergence {summed:.4g}")
        forms[f"searched, {budget}"] = found
        if budget in SEARCHED_AND_CALIBRATED:
            forms[f"searched, {budget}, calibrated"] = calibrate(network, found, inputs)
    record = [
        {"block": b.name, "tiles": [str(t) for t in own], "divergence": d}
        for b, own, d in zip(plan.blocks, options, divergences)
    ]
    return forms, record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=["mobilenet", "centernet"])
    parser.add_argument("--shared", type=Path, help="folder with models and data")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--cache", type=Path, help="folder for what is kept between runs")
    parser.add_argument("--only", choices=["uniform"], help="leave out what is fitted and chosen")
    parser.add_argument("--draw", action="store_true", help="only draw what is recorded in the folder")
    args = parser.parse_args()
    if args.draw:
        draw(args.output / f"sliding_{args.network}.json")
        return
    if args.shared is None or args.cache is None:
        parser.error("--shared and --cache are needed to measure")
    torch.set_num_threads(1)
    started = time.time()

    def log(text):
        print(f"{time.time() - started:7.1f} s  {text}", file=sys.stderr, flush=True)

    args.cache.mkdir(parents=True, exist_ok=True)
    network, task, sets, order, batch, few, tiles = opened(args)

    def path_of(name):
        return args.cache / f"sliding-{args.network}-{name}.pickle".replace(":", "_")

    def kept(name, make):
        path = path_of(name)
        if not path.exists():
            with written_whole(path) as part:
                part.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())

    results = {}

    def judged(forms):
        """Results of forms, each a plan for each fold, in the order of the images; the SE network runs once for all."""
        missing = [name for name in forms if not path_of(name).exists()]
        rows = {name: [] for name in missing}
        for fold, (_, _, test) in enumerate(sets if missing else ()):
            branches = network.branches([forms[name][fold] for name in missing])
            for one in test.batches(batch):
                targets = task.targets(one)
                for name, output in zip(missing, list(branches(one.inputs))[1:], strict=True):
                    rows[name] += task.judge(one, targets, output, "TSE")
            log(f"judged {len(missing)} forms, fold {fold}")
        for name in forms:
            results[name] = kept(name, lambda name=name: [rows[name][int(i)] for i in np.argsort(order)])
            log(f"{name}: {task.score(results[name])}")

    with torch.no_grad():
        uniform = {text: [network.se.with_tile(text)] * len(sets) for text in UNIFORM}
        judged({"SE": [network.se] * len(sets), **uniform})
        for rows in TLC:
            name, module = f"TLC, {rows} rows", Sliding(network.probe, network.se, rows)

            def make(module=module):
                found = [row for _, _, test in sets for row in judge(network, module, task, test, batch)]
                return [found[int(i)] for i in np.argsort(order)]

            results[name] = kept(name, make)
            log(f"{name}: {task.score(results[name])}")
        chosen = []
        if args.only != "uniform":
            for number, (fit_images, choice, _) in enumerate(sets):

                def choose_fold(a=fit_images, b=choice):
                    return choose(args.network, network, a, b, few, batch, tiles, args.cache, log)

                chosen.append(kept(f"forms-{number}", choose_fold))
            judged({name: [forms[name] for forms, _ in chosen] for name in chosen[0][0]})
    known = {}
    if task.name == "detect":  # bootstrap samples of AP take longer than running the network
        for name, rows in results.items():
            known[name] = kept(f"drawn {name}", lambda rows=rows: drawn_again(task, rows))
    write(args, network, task, chosen, results, known)


def write(args, network, task, chosen, results, known):
    lines = []
    for name in results:
        plans = [network.se.with_tile(name)] if name in UNIFORM else [forms.get(name) for forms, _ in chosen]
        plans = [network.se] if name == "SE" else [p for p in plans if p is not None]
        against = {}
        for first in ("SE", "7xW"):
            paired = pair(task, known, results, first, name)
            end = "" if first == "SE" else "_7xW"
            against |= {
                f"drop{end}": round(paired.drop, 3),
                f"drop{end}_low": round(paired.drop_ci95[0], 3),
                f"drop{end}_high": round(paired.drop_ci95[1], 3),
                f"lost{end}": paired.lost,
                f"gained{end}": paired.gained,
            }
        lines.append(
            {
                "form": name,
                "buffer": "/".join(str(b) for b in dict.fromkeys(map(gate_buffer, plans))),
                "row_sums": "/".join(str(n) for n in dict.fromkeys(map(row_sums, plans))),
                "numbers": "/".join(str(sum(c.numbers for c in p.corrections if c)) for p in plans[:1]),
                task.metric: round(task.score(results[name])[task.metric], 3),
                **against,
            }
        )
    write_csv(args.output / f"sliding_{args.network}.csv", lines)
    record = {
        "network": args.network, "metric": task.metric, "n": len(next(iter(results.values()))),
        "machine": platform.machine(), "versions": {p: version(p) for p in ("torch", "onnxruntime")},
        "forms": lines,
        "plans": [
            {name: [str(t) for t in p.tiles] for name, p in forms.items() if name.startswith("searched")}
            for forms, _ in chosen
        ],
        "alone": [options for _, options in chosen],
    }  # fmt: skip
    path = args.output / f"sliding_{args.network}.json"
    with written_whole(path) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    draw(path)


def row_sums(plan):
    """Sums of rows that the strips keep beside their buffer."""
    return cost(plan).tse.running_sums


def draw(path: Path) -> None:
    """Drop against buffer: strips, running strips, sliding strips, calibrated and searched; 7xW's loss as a line."""
    from matplotlib.figure import Figure

    record = json.loads(path.read_text())
    forms = {form["form"]: form for form in record["forms"]}
    figure = Figure(figsize=(7.5, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()

    def line(names, mark, colour, label, fill="full"):
        own = sorted(
            (int(str(forms[n]["buffer"]).partition("/")[0]), n)
            for n in names
            if n in forms and forms[n]["buffer"]
        )
        own = [(max(buffer, 1), forms[n]) for buffer, n in own if buffer]
        if own:
            axes.errorbar(
                [b for b, _ in own], [f["drop"] for _, f in own], fmt=mark, color=colour, label=label, fillstyle=fill,
                yerr=np.abs([[f["drop"] - f[f"drop_{end}"] for _, f in own] for end in ("low", "high")]),
                elinewidth=0.6, alpha=0.9,
            )  # fmt: skip

    line([n for n in forms if n in ("3xW", "7xW")], "s:", "tab:green", "strips, kxW")
    line([n for n in forms if n in ("3xW:running", "7xW:running")], "^:", "tab:red", "kxW:running")
    sliding = [n for n in forms if n.startswith("1xW:running") and "cal" not in n]
    line(sliding, "o-", "tab:blue", "sliding, 1xW:running+L")
    line([f"{n}, calibrated" for n in sliding], "o--", "tab:blue", "sliding, calibrated", "none")
    line([n for n in forms if n.startswith("searched") and "cal" not in n], "D-", "tab:orange", "searched")
    line(
        [n for n in forms if n.startswith("searched") and "cal" in n],
        "D--",
        "tab:orange",
        "searched, calibrated",
        "none",
    )
    axes.axhline(forms["7xW"]["drop"], color="0.5", lw=0.8, label="what 7xW loses")
    axes.axhline(0, color="0.8", lw=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("gate buffer, elements")
    axes.set_ylabel(f"drop of {record['metric']}, percentage points (bars: 95 %)")
    axes.set_title(
        f"{record['network']}, {record['n']} images; plans and numbers are from others", fontsize=10
    )
    axes.legend(fontsize=8)
    with written_whole(path.with_suffix(".png")) as part:
        figure.savefig(part)


if __name__ == "__main__":
    main()
