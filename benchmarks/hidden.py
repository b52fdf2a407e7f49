"""Where in the excitation to match: descriptors, hidden units, or gates; on images that were not used for the fit.

    python benchmarks/hidden.py --shared ../shared -o results/accuracy/choose/hidden.csv

MobileNetV3-Small. The 1300 ImageNet validation images are cut into two halves by numpy's generator with seed 0; of each
half 400 are fitted on and 250 judged, and both are counted together. Fitted in closed form for each unit and strip, by
the same ridge regression as ``tiledse calibrate``: from what its own strip gives and, with ``running``, what all rows
seen give, to what the whole map gives. Blocks in the order of the network. Divergence: KL of the softmax from SE's.
Rows that the output has already are kept.
"""

from __future__ import annotations

import argparse
import csv
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from tiledse.choose.calibration import fit_means, strip_means
from tiledse.data.opening import open_images
from tiledse.data.preprocessing import Preprocessing
from tiledse.evaluate.tasks import softmax_divergence
from tiledse.files import write_csv
from tiledse.tile import Tile

LAYER = "a first layer for each strip"
# (what is matched, ridge in images)
VARIANTS = (
    ("nothing", 0),
    ("descriptors", 300),
    ("descriptors", 100),
    ("descriptors", 1000),
    ("hidden units before their activation", 300),
    ("hidden units", 300),
    ("hidden units", 1000),
    ("gates before their function", 300),
    (LAYER, 1000),
)
TILES = ("1xW:running", "3xW:running", "7xW:running", "1xW", "3xW", "7xW")


class Block(nn.Module):
    """An SE block whose gates are those of a fit; ``layers`` are the steps from descriptors to gates."""

    def __init__(self, se: nn.Module) -> None:
        super().__init__()
        self.tall, self.gates, self.rows = 0, None, None
        self.layers = [se.conv_reduce, se.act1, se.conv_expand, se.gate]

    def upto(self, count: int, x: torch.Tensor) -> torch.Tensor:
        """(N, C, strips) through the first layers."""
        x = x[..., None]
        for layer in self.layers[:count]:
            x = layer(x.clone())
        return x[..., 0]

    def after(self, count: int, x: torch.Tensor) -> torch.Tensor:
        x = x[..., None]
        for layer in self.layers[count:]:
            x = layer(x.clone())
        return x[..., 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows = x.mean(3)
        if self.gates is None:
            return x * self.after(0, x.mean((2, 3))[..., None])[..., None]
        own, running = known(self.rows.numpy(), self.tall)
        gates = self.gates(own, running)
        return x * gates.repeat_interleave(self.tall, 2)[:, :, : x.shape[2], None]


def known(rows: np.ndarray, tall: int) -> list[torch.Tensor]:
    return [torch.from_numpy(v).float() for v in strip_means(rows, Tile(tall, None, "running"))]


MATCHED = {
    "descriptors": 0,
    "hidden units before their activation": 1,
    LAYER: 1,
    "hidden units": 2,
    "gates before their function": 3,
}


def fitted(block: Block, rows: np.ndarray, tile: Tile, what: str, prior: float):
    """The gates of strips as a function of their own and their running means, and how many numbers it holds."""
    sees = tile.squeeze == "running"
    if what == "nothing":
        return (lambda own, running: block.after(0, running if sees else own)), 0
    depth = MATCHED[what]
    own, running = (block.upto(depth, v) for v in known(rows, tile.height))
    whole = block.upto(depth, torch.from_numpy(rows.mean(2, dtype=np.float64)).float()[..., None])
    if what == LAYER:
        return own_layers(block, own, running, whole, prior, sees)
    inputs = own.double().numpy(), running.double().numpy() if sees else None
    fit = fit_means(*inputs, whole[..., 0].double().numpy(), prior)
    a, b, c = (torch.from_numpy(v).float() for v in fit)

    def gates(own, running):
        return block.after(depth, a * block.upto(depth, own) + b * block.upto(depth, running) + c)

    return gates, a.numel() * (3 if sees else 2)


def own_layers(block: Block, own, running, whole, prior: float, sees: bool):
    """Hidden units from all hidden units of the strip: the first layer's weights, anew for each strip."""
    base = running if sees else own
    known = torch.cat([own, running], 1) if sees else own
    layers = []
    for strip in range(own.shape[2]):
        x, y = known[:, :, strip].double(), (whole[:, :, 0] - base[:, :, strip]).double()
        mean = x.mean(0)
        gram = (x - mean).T @ (x - mean) / len(x)
        ridge = torch.diag(gram.diagonal() * prior / len(x) + 1e-12)
        weights = torch.linalg.solve(gram + ridge, (x - mean).T @ (y - y.mean(0)) / len(x))
        layers.append((weights, y.mean(0) - mean @ weights))
    weights, offsets = (torch.stack(each).float() for each in zip(*layers))

    def gates(own, running):
        own, running = block.upto(1, own), block.upto(1, running)
        known = torch.cat([own, running], 1) if sees else own
        more = torch.einsum("nij,jik->nkj", known, weights) + offsets.T
        return block.after(1, (running if sees else own) + more)

    return gates, weights.numel() + offsets.numel()


@torch.no_grad()
def run(model, blocks, x, test, tile, what, prior):
    """Outputs on the images to judge, and the numbers of the fit. Maps go from block to block, fitted on the way."""
    numbers = 0
    for block in blocks.values():
        block.gates = None
    x, test = ([model.bn1(model.conv_stem(part)) for part in parts] for parts in (x, test))
    for name, module in model.blocks.named_modules():
        if name.count(".") != 1:
            continue
        block = blocks.get(name)
        if block is not None and tile is not None:
            for part in x[:1]:
                module(part)
            if tile.height < block.rows.shape[2]:
                rows = []
                for part in x:
                    module(part)
                    rows.append(block.rows)
                block.gates, count = fitted(block, torch.cat(rows).numpy(), tile, what, prior)
                block.tall, numbers = tile.height, numbers + count
        x, test = ([module(part) for part in parts] for parts in (x if tile else [], test))
    return torch.cat([model.forward_head(part) for part in test]), numbers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--tiles", default=",".join(TILES))
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = timm.create_model("tf_mobilenetv3_small_100").eval()
    model.load_state_dict(load_file(args.shared / "models/tf_mobilenetv3_small_100.safetensors"))
    blocks = {}
    for name, module in list(model.blocks.named_modules()):
        if hasattr(getattr(module, "se", None), "conv_reduce"):
            blocks[name] = module.se = Block(module.se)
    prepare = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, kind="crop")
    images = open_images(args.shared / "data/imagenet_val1300", prepare)
    drawn = np.random.default_rng(0).permutation(len(images.files))
    halves = []
    for half in (drawn[:650], drawn[650:]):
        x = torch.stack([images.sample(int(i)).input for i in half])
        test = x[400:].split(50)
        halves.append((x[:400].split(50), test, run(model, blocks, [], test, None, "", 0)[0]))
    lines = list(csv.DictReader(args.output.open())) if args.output.exists() else []
    done = {(line["tile"], line["matched"], int(line["prior_images"])) for line in lines}
    for text in args.tiles.split(","):
        base = None
        if all((text, *variant) in done for variant in VARIANTS):
            continue
        for what, prior in VARIANTS:
            if (text, what, prior) in done and (what, prior) != VARIANTS[1]:
                continue
            apart, same = [], 0
            for x, test, se in halves:
                tse, numbers = run(model, blocks, x, test, Tile.parse(text), what, prior)
                apart.append(softmax_divergence(se, tse).numpy())
                same += int((se.argmax(1) == tse.argmax(1)).sum())
            apart = np.concatenate(apart)
            if (what, prior) == ("descriptors", 300):
                base = apart
            less = None if base is None else base - apart
            if (text, what, prior) in done:
                continue
            error = 0 if less is None else 1.96 * less.std() / len(less) ** 0.5
            lines.append(
                {
                    "tile": text, "matched": what, "prior_images": prior, "numbers": numbers,
                    "divergence": round(float(apart.mean()), 4),
                    "standard_error": round(float(apart.std() / len(apart) ** 0.5), 4),
                    "less_than_descriptors": "" if less is None else round(float(less.mean()), 4),
                    "ci95": "" if less is None else f"{less.mean() - error:.4f} to {less.mean() + error:.4f}",
                    "same_class": same, "n": len(apart), "torch": version("torch"), "timm": version("timm"),
                }
            )  # fmt: skip
            print(lines[-1], file=sys.stderr, flush=True)
            write_csv(args.output, lines)


if __name__ == "__main__":
    main()
