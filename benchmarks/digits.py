"""ContextNet on spoken digits: what whole-utterance SE, strips, running means and no SE are worth, and what streams.

    python benchmarks/digits.py train --shared ../shared --work DIR -o results/accuracy/spoken_digits.csv
    python benchmarks/digits.py table -o results/accuracy/spoken_digits.csv
    python benchmarks/digits.py stream --shared ../shared --work DIR -o results/accuracy/spoken_digits_stream.csv

Each network of ``examples/contextnet.py`` is trained for CTC on windows of 2.56 s that hold joined recordings of the
training split, with random gaps, gains and noise. It is judged on recordings of the test split by its digit error
rate (edits of the decoded digits over digits said): one recording alone, windows as in training, and sound of a minute.
``--work`` keeps the weights of each network that is done, and a run that was cut off goes on with the next.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tarfile
import time
import wave
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import tiledse as ts
from tiledse.files import write_csv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from examples.contextnet import BANDS, ContextNet, no_gate, tiled

RATE, HOP, WINDOW, FFT = 8000, 80, 200, 256
FRAMES, BATCH, EPOCHS, STEPS, RATE_OF_LEARNING = 256, 32, 12, 30, 6e-3
TRAINED = ("T", "8xT", "1xT:running", "1xT:running+7", "none")
# Tiles that networks trained with whole-utterance SE are judged with, weights as they are.
AS_IS = ("8xT", "16xT", "8xT:running", "1xT:running", "1xT:running+7", "1xT:window-24+7")
SEEDS = (0, 1, 2)
COLUMNS = ("trained", "judged", "seed", "alone", "windows", "minute", "parameters")


class Recording(NamedTuple):
    """One digit: samples of -1 to 1, and which it is."""

    samples: np.ndarray
    digit: int


def recordings(shared: Path) -> tuple[list[Recording], list[Recording]]:
    """Training and test set: the data set's own split, by the index of a recording."""
    sets: tuple[list[Recording], list[Recording]] = ([], [])
    with tarfile.open(shared / "data/spoken_digits/recordings.tar.gz") as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            name = Path(member.name)
            if name.suffix != ".wav":
                continue
            file = archive.extractfile(member)
            assert file is not None
            with wave.open(BytesIO(file.read())) as sound:
                samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16) / 32768
            digit, _, index = name.stem.split("_")
            sets[int(index) < 5].append(Recording(samples.astype(np.float32), int(digit)))
    return sets


def joined(
    pool: list[Recording], length: int, generator: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """Recordings one after the other with gaps and noise, as many as go into a length in samples."""
    sound, digits = np.zeros(length, np.float32), []
    at = int(generator.integers(200, 2000))
    while True:
        one = pool[generator.integers(len(pool))]
        if at + len(one.samples) + 400 > length:
            break
        sound[at : at + len(one.samples)] += one.samples * float(10 ** generator.uniform(-0.3, 0.3))
        digits.append(one.digit)
        at += len(one.samples) + int(generator.integers(400, 2400))
    return sound + noise(length, generator), digits


def noise(length: int, generator: np.random.Generator) -> np.ndarray:
    """White noise of 50 to 70 dB below full scale."""
    level = 10 ** generator.uniform(-3.5, -2.5)
    return generator.standard_normal(length).astype(np.float32) * np.float32(level)


def features(sounds: Tensor) -> Tensor:
    """(N, samples) to (N, 40, frames): log mel energies, a frame of 25 ms each 10 ms; no frame looks ahead."""
    padded = nn.functional.pad(sounds, (WINDOW - HOP, 0))
    frames = padded.unfold(1, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(frames, FFT).abs().square() @ mel_bands().t()
    return ((power + 1e-5).log() / 3 + 1).transpose(1, 2)


def mel_bands() -> Tensor:
    """(40, FFT / 2 + 1): triangles at equal distances on the mel scale."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1) * FFT / RATE
    bins = np.arange(FFT // 2 + 1)
    low, middle, high = (edges[i : i + BANDS, None] for i in range(3))
    weights = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clip(0)
    return torch.tensor(weights, dtype=torch.float32)


def decoded(logits: Tensor) -> list[int]:
    """The digits that CTC says, the likeliest class of each frame: (11, T) to a list."""
    best = logits.argmax(0).tolist()
    return [b - 1 for before, b in zip([0, *best], best) if b and b != before]


def edits(said: list[int], got: list[int]) -> int:
    """Insertions, deletions and replacements between two lists (Levenshtein)."""
    row = list(range(len(got) + 1))
    for i, a in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(got, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def network(gate: str) -> nn.Module:
    """A network by the tile of its SE, or ``none``."""
    return ContextNet(no_gate) if gate == "none" else tiled(gate)


def trained(gate: str, seed: int, pool: list[Recording], work: Path) -> nn.Module:
    """A network that was trained, now or in an earlier run."""
    file = work / f"{gate.replace(':', '_')}-{seed}.pt"
    torch.manual_seed(seed)
    model = network(gate)
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    generator = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE_OF_LEARNING, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RATE_OF_LEARNING, EPOCHS * STEPS, pct_start=0.15
    )
    start = time.process_time()
    for epoch in range(EPOCHS):
        total = 0.0
        for _ in range(STEPS):
            pairs = [joined(pool, FRAMES * HOP, generator) for _ in range(BATCH)]
            x = features(torch.tensor(np.stack([sound for sound, _ in pairs])))
            scores = model(x).log_softmax(1).permute(2, 0, 1)
            loss = nn.functional.ctc_loss(
                scores,
                torch.tensor([d + 1 for _, digits in pairs for d in digits]),
                torch.full((BATCH,), len(scores)),
                torch.tensor([len(digits) for _, digits in pairs]),
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
        if epoch % 4 == 3:
            print(
                f"{gate} {seed}: epoch {epoch + 1}, loss {total / STEPS:.3f}, {time.process_time() - start:.0f} s",
                flush=True,
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()


def judged(model: nn.Module, pool: list[Recording]) -> dict[str, float]:
    """Digit error rates in percent on the test set."""
    generator = np.random.default_rng(100)
    alone = [
        (np.pad(one.samples, 800) + noise(len(one.samples) + 1600, generator), [one.digit]) for one in pool
    ]
    windows = [joined(pool, FRAMES * HOP, generator) for _ in range(300)]
    minute = [joined(pool, 60 * RATE, generator) for _ in range(10)]
    rates = {}
    for name, pairs in (("alone", alone), ("windows", windows), ("minute", minute)):
        wrong = said = 0
        for sound, digits in pairs:
            with torch.no_grad():
                wrong += edits(digits, decoded(model(features(torch.tensor(sound[None])))[0]))
            said += len(digits)
        rates[name] = 100 * wrong / said
    return rates


def with_tile(model: nn.Module, gate: str) -> nn.Module:
    """The same weights with another tile."""
    other = network(gate)
    other.load_state_dict(model.state_dict())
    return other.eval()


def train(args: argparse.Namespace) -> None:
    """Train and judge every network, and write the CSV after each."""
    pool, test = recordings(args.shared)
    rows: list[dict[str, Any]] = []
    if args.output.exists():
        with args.output.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(row["trained"], row["judged"], str(row["seed"])) for row in rows}
    for seed in SEEDS:
        for gate in TRAINED:
            wanted = [gate, *(AS_IS if gate == "T" else ())]
            if all((gate, tile, str(seed)) in done for tile in wanted):
                continue
            model = trained(gate, seed, pool, args.work)
            count = sum(p.numel() for p in model.parameters())
            for tile in wanted:
                if (gate, tile, str(seed)) not in done:
                    rates = judged(model if tile == gate else with_tile(model, tile), test)
                    figures = {key: f"{value:.3f}" for key, value in rates.items()}
                    rows.append(
                        {"trained": gate, "judged": tile, "seed": seed, **figures, "parameters": count}
                    )
                    write_csv(args.output, rows)
                    print(rows[-1], flush=True)


def stream(args: argparse.Namespace) -> None:
    """Push sound of unknown length 40 ms at a time through the networks of one seed, and compare with all at once."""
    _, test = recordings(args.shared)
    rows: list[dict[str, Any]] = []
    for gate in TRAINED:
        model = network(gate)
        model.load_state_dict(torch.load(args.work / f"{gate.replace(':', '_')}-0.pt", weights_only=True))
        model.eval()
        plan = ts.find(model, (BANDS, FRAMES))
        generator = np.random.default_rng(200)
        for seconds in (10, 60):
            sound, digits = joined(test, seconds * RATE, generator)
            x = features(torch.tensor(sound[None]))
            streamed = ts.stream(model, plan, height=None, rows=4)
            outputs, first = [], None
            with torch.no_grad():
                expected = model(x)
                for at in range(0, x.shape[2], 4):
                    y = streamed.push(x[:, :, at : at + 4])
                    if y is not None:
                        outputs.append(y)
                        first = first or at + 4
                outputs.append(streamed.finish())
            got = torch.cat(outputs, 2)
            rows.append(
                {
                    "tile": gate, "seconds": seconds, "digits": len(digits), "wrong": edits(digits, decoded(got[0])),
                    "wrong_all_at_once": edits(digits, decoded(expected[0])),
                    "difference": f"{float((got - expected).abs().max() / expected.abs().max()):.1e}",
                    "frames_until_first": "" if first is None else first, "live_bytes": streamed.peak_live_bytes,
                }
            )  # fmt: skip
            write_csv(args.output, rows)
            print(rows[-1], flush=True)


def table(args: argparse.Namespace) -> None:
    """Means over seeds with 95 % intervals (Student's t), and the difference from whole-utterance SE."""
    with args.output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    forms: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in rows:
        figures = {key: float(row[key]) for key in ("alone", "windows", "minute")}
        forms.setdefault((row["trained"], row["judged"]), {})[row["seed"]] = figures
    base = forms[("T", "T")]
    print("| trained with | judged with | alone | windows | a minute | more than SE in windows |")
    print("|---|---|---|---|---|---|")
    for (own, tile), seeds in forms.items():
        cells = [interval([f[key] for f in seeds.values()]) for key in ("alone", "windows", "minute")]
        more = interval([f["windows"] - base[seed]["windows"] for seed, f in seeds.items()])
        print(f"| {own} | {tile} | {' | '.join(cells)} | {more} |")


def interval(values: list[float]) -> str:
    """Mean and half width of the 95 % interval of three seeds."""
    from scipy.stats import t

    half = (
        t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        if len(values) > 1
        else 0
    )
    return f"{np.mean(values):.1f} ± {half:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("train", "stream", "table"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, default=Path("build/digits"))
    parser.add_argument("-o", "--output", type=Path, default=Path("results/accuracy/spoken_digits.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"train": train, "stream": stream, "table": table}[given.verb](given)
