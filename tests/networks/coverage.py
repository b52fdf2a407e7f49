"""Check every timm network with SE blocks and write docs/coverage.md: `make coverage`.

Each result is kept in a CSV as soon as it is there; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
import warnings
from multiprocessing import get_context
from pathlib import Path

import torch

warnings.simplefilter("ignore")
OTHERS = ("## Other libraries", "<!-- make coverage-onnx")  # parts that other targets write
FIELDS = (
    "name",
    "params",
    "size",
    "blocks",
    "dialects",
    "near_misses",
    "identity",
    "tiles",
    "seconds",
    "failure",
)


def se_networks() -> list[str]:
    """timm's networks that hold a module named as an SE class, built without weights."""
    import timm

    from tests.networks.check import SE_NAMES

    names = []
    for name in timm.list_models():
        with torch.device("meta"):
            model = timm.create_model(name)
        if any(type(module).__name__ in SE_NAMES for module in model.modules()):
            names.append(name)
    return names


def check(name: str) -> dict[str, object]:
    """One network as a row."""
    torch.set_num_threads(1)
    from tests.networks.check import build, check_network, input_size

    start = time.time()
    row: dict[str, object] = dict.fromkeys(FIELDS, "")
    row["name"] = name
    try:
        model = build(name)
        row["params"] = sum(p.numel() for p in model.parameters())
        result = check_network(name, model, input_size(model))
        row |= {
            "size": "x".join(map(str, result.size)),
            "blocks": result.blocks,
            "dialects": " ".join(result.dialects),
            "near_misses": result.near_misses,
            "identity": f"{result.identity:.1e}",
            "tiles": f"{result.tiles:.1e}",
        }
    except Exception as error:
        row["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    row["seconds"] = f"{time.time() - start:.1f}"
    gc.collect()
    return row


def write_page(rows: list[dict[str, str]], path: Path) -> None:
    """docs/coverage.md from the rows."""
    import timm

    good = [row for row in rows if not row["failure"]]
    blocks = sum(int(row["blocks"]) for row in good)
    families: dict[str, list[dict[str, str]]] = {}
    for row in good:
        for dialect in row["dialects"].split():
            families.setdefault(dialect, []).append(row)
    lines = [
        "# Coverage: every timm network with squeeze-and-excite blocks",
        "",
        f"timm {timm.__version__}, torch {torch.__version__}, float32 on CPU, random weights. Written by",
        "`make coverage`.",
        "",
        f"**{len(good)} of {len(rows)} networks pass, with {blocks} blocks.** For each network:",
        "",
        "- all blocks are found: those whose class is named as an SE class, by a list that the finder does not use;",
        "- `HxW` gives the network back to the last bit; one tile larger than every map, computed by the tiled",
        "  operator, is within 1e-6 of it (largest difference / largest output: column *identity*). Where it is not,",
        "  the operator in PyTorch is, which adds as SE does: the kernels add in another order, and deep random",
        "  networks magnify the last digit (1e-15 of the image moves efficientnetv2_m's output by 1e-5 in float64);",
        "- the state_dict has the same names and loads strictly both ways;",
        "- `7xW` equals calling the original block on each tile alone (column *7xW*: largest difference of a block /",
        "  its largest output). Where that is above 2e-6 the gates magnify float32's rounding, since random deep",
        "  networks grow large values; there the same comparison in float64 must be within 1e-10, and is;",
        "- a converted network is found again as what it is, and converts back.",
        "",
        "Networks whose attention is ECA (`EcaModule`) are not in this table, which goes by the names of SE classes.",
        "Their blocks are found too, as `traced`: a mean, a convolution along the channels and a product are tiled as",
        "SE is, and `find` goes by numbers, not by names.",
        "",
        "| dialect | networks | blocks |",
        "|---|---|---|",
    ]
    for dialect, members in sorted(families.items(), key=lambda item: -len(item[1])):
        only = sum(int(row["blocks"]) for row in members if row["dialects"] == dialect)
        lines.append(f"| {dialect} | {len(members)} | {only} |")
    lines += [
        "",
        "| network | input | blocks | dialects | near misses | identity | 7xW |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        result = row["failure"] or row["identity"]
        cells = (
            row["name"],
            row["size"],
            row["blocks"],
            row["dialects"],
            row["near_misses"],
            result,
            row["tiles"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    places = [old.index(mark) for mark in OTHERS if mark in old]
    others = old[min(places) :] if places else ""
    path.write_text("\n".join(lines) + "\n" + (f"\n{others}" if others else ""), encoding="utf-8")


def main() -> None:
    """Check what is not in the CSV yet, smallest first, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, default=Path("build/coverage.csv"))
    parser.add_argument("--page", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    options.csv.parent.mkdir(exist_ok=True)
    before = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    # What failed is tried again.
    done = list({row["name"]: row for row in before if not row["failure"]}.values())
    listed = options.csv.with_name("se_networks.txt")  # building all of timm's networks takes minutes
    if not listed.exists():
        listed.write_text("\n".join(se_networks()))
    names = listed.read_text().split()
    todo = [name for name in names if name not in {row["name"] for row in done}]
    print(f"{len(names)} networks with SE blocks, {len(todo)} to check")
    with (
        options.csv.open("a", newline="") as file,
        get_context("spawn").Pool(options.jobs, maxtasksperchild=8) as pool,
    ):
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(done)
        for row in pool.imap_unordered(check, todo):
            writer.writerow(row)
            file.flush()
            print(*(str(value) for value in row.values()), flush=True)
    rows = {row["name"]: row for row in csv.DictReader(options.csv.open())}
    write_page([rows[name] for name in names if name in rows], options.page)
    failed = [name for name, row in rows.items() if row["failure"]]
    print(
        f"{len(rows) - len(failed)} of {len(rows)} pass{': not ' + ', '.join(failed) if failed else ''}; {options.page}"
    )
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
