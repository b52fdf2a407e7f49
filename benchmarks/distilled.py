"""What label-free distillation gives: SE, tiles as they are and tiles distilled, on the same labelled images.

    tiledse train recipes/distill.toml --data photos -o runs/distill --weights SE.safetensors
    python benchmarks/distilled.py runs/distill --weights SE.safetensors --data imagenet_val1300 -o distilled.csv

The labelled images are used for nothing but this. Differences are paired by image: McNemar's exact p-value and the
95 % interval of Bonett and Price.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.classification import Classification
from tiledse.evaluate.tasks import run
from tiledse.files import write_csv
from tiledse.networks import convert, find
from tiledse.networks.converter import convert_shared
from tiledse.networks.loading import load
from tiledse.networks.weights import load_weights
from tiledse.plan import Plan

MODEL = "timm:tf_mobilenetv3_small_100"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)

    se = load(MODEL, weights=options.weights).model
    plan = find(se, (3, 224, 224))
    networks: dict[str, nn.Module] = {"SE": se}
    trained = sorted(options.runs.rglob("result.json"))
    for path in trained:
        result = json.loads(path.read_text("utf-8"))
        tile = result["tile"]
        networks[f"{tile} as is"] = convert_shared(se, plan.with_tile(tile))
        student = convert(load(MODEL).model, Plan.load(path.parent / "best.safetensors"))
        load_weights(student, path.parent / "best.safetensors")
        networks[f"{tile} distilled"] = student.eval()

    task = Classification(open_images(options.data, Preprocessing.of(se, (3, 224, 224), "crop")))

    def branches(inputs: Tensor) -> Iterator[Tensor]:
        for network in networks.values():
            yield network(inputs)

    found = run(task, branches, list(networks), batch_size=50)
    by_name = dict(zip(networks, found.networks, strict=True))
    rows = []
    for name, guesses in by_name.items():
        paired = task.compare(by_name["SE"], guesses)
        row = {
            "network": name, "n": len(guesses), **{k: round(v, 2) for k, v in task.score(guesses).items()},
            "drop": round(paired.drop, 2), "low": round(paired.drop_ci95[0], 2), "high": round(paired.drop_ci95[1], 2),
            "lost": paired.lost, "gained": paired.gained, "p_value": float(f"{paired.p_value:.2g}"),
        }  # fmt: skip
        if name.endswith("distilled"):
            won = task.compare(guesses, by_name[name.replace("distilled", "as is")])
            row |= {
                "over_as_is": round(won.drop, 2),
                "over_low": round(won.drop_ci95[0], 2),
                "over_high": round(won.drop_ci95[1], 2),
            }
        rows.append(row)
        print(row, flush=True)
    write_csv(options.output, rows)


if __name__ == "__main__":
    main()
