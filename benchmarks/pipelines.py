"""What whole pipelines hold, and how long an image is on its way: writes the table of docs/streaming.md.

python benchmarks/pipelines.py [--tile 7xW] [--output FILE]. Counted and simulated, nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch

RESULTS = Path(__file__).parent.parent / "results" / "speed" / "pipelines.json"
# The paper's networks at its sizes; the segmentation network at output stride 32, as its figures count it.
NETWORKS = {
    "timm:regnety_002": (224, 224),
    "timm:regnety_004": (224, 224),
    "timm:regnety_006": (224, 224),
    "timm:regnety_008": (224, 224),
    "timm:regnety_016": (224, 224),
    "timm:regnety_032": (224, 224),
    "timm:efficientnet_b0": (224, 224),
    "timm:efficientnet_b1": (240, 240),
    "timm:efficientnet_b2": (260, 260),
    "timm:efficientnet_b3": (300, 300),
    "effdet:efficientdet_d0": (512, 512),
    "effdet:efficientdet_d1": (640, 640),
    "effdet:efficientdet_d2": (768, 768),
    "timm:mobilenetv3_large_100": (1024, 2048),
}


def row(name: str, size: tuple[int, int], tile: str) -> dict[str, object]:
    """One network: elements held by kind, and latency, with SE and with the tile."""
    import tiledse as ts
    from tiledse.networks.loading import load
    from tiledse.stream.building import build_graph
    from tiledse.stream.flow import count_held
    from tiledse.stream.simulator import simulate_graph

    model = load(name, input_size=(3, *size)).model
    plan = ts.find(model, (3, *size))
    result: dict[str, object] = {"network": name, "size": list(size), "tile": tile}
    for key, chosen in (("se", plan), ("tse", plan.with_tile(tile))):
        graph = build_graph(model, chosen)
        held = {"gate": 0, "shortcut": 0, "rows": 0}
        for item in count_held(graph):
            held[item.kind] += item.elements
        run = simulate_graph(graph, ts.Hardware(), "unhindered", 3)
        frames = run.cycles / run.frame_cycles
        result[key] = {
            **held,
            "all": sum(held.values()),
            "fifo": run.fifo,
            "latency_frames": round(frames, 2),
        }
        result[f"{key}_cost"] = ts.cost(chosen).tse.buffer_row_order
    return result


def markdown(rows: list[dict]) -> str:
    """The rows as a table of millions of elements."""
    lines = [
        "| network | size | gates: SE | TSE | shortcuts: SE | TSE | lines: SE | TSE | all: SE | TSE "
        "| latency: SE | TSE |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [r["network"].split(":")[1], "x".join(map(str, r["size"]))]
        for kind in ("gate", "shortcut", "rows", "all"):
            cells += [f"{r[key][kind] / 1e6:.2f}" for key in ("se", "tse")]
        cells += [f"{r[key]['latency_frames']:.1f}" for key in ("se", "tse")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tile", default="7xW")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name, size in NETWORKS.items():
        rows.append(row(name, size, arguments.tile))
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
        print(markdown(rows[-1:]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
