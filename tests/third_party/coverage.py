"""Check the SE networks of other libraries and write their table into docs/coverage.md: `make coverage-third-party`.

Each result is kept in a CSV as soon as it is there; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import gc
import itertools
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.third_party.check import TOLERANCE

COUNTS = ("expected", "found", "refused", "silent", "wrong")
FIELDS = ("library", "family", "network", *COUNTS, "worst", "seconds", "reasons", "failure")
MARKER = "## Other libraries"
PACKAGES = {"segmentation_models_pytorch": "segmentation-models-pytorch"}


def listed() -> Iterator[tuple[str, str, str]]:
    """Library, family and name of every network: breadth first, the smallest of each family before any second one."""
    from tests.third_party.networks import LIBRARIES

    queues: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for library, networks in LIBRARIES.items():
        try:
            for network in networks():
                key = (library, network.family)
                queues.setdefault(key, []).append((library, network.family, network.name))
        except ImportError as error:
            print(f"{library} is not there: {error}")
    ranks: dict[str, itertools.count[int]] = {}
    order = sorted(queues, key=lambda key: next(ranks.setdefault(key[0], itertools.count())))
    for row in itertools.zip_longest(*(queues[key] for key in order)):
        yield from (name for name in row if name is not None)


def check(job: tuple[str, str, str]) -> dict[str, object]:
    """One network as a row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from tests.third_party.check import check_network
    from tests.third_party.networks import LIBRARIES

    library, family, name = job
    start = time.time()
    row: dict[str, object] = {
        **dict.fromkeys(FIELDS, ""),
        "library": library,
        "family": family,
        "network": name,
    }
    try:
        network = next(n for n in LIBRARIES[library]() if n.name == name)
        result = check_network(network)
        row |= {key: getattr(result, key) for key in COUNTS}
        row["worst"] = f"{result.worst:.1e}"
        row["reasons"] = " | ".join(dict.fromkeys([*result.faults, *result.reasons]))
    except Exception as error:
        row["failure"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    row["seconds"] = f"{time.time() - start:.1f}"
    gc.collect()
    return row


def section(rows: list[dict[str, str]], total: int) -> str:
    """The part of docs/coverage.md about other libraries."""
    done = [row for row in rows if not row["failure"]]
    with_se = [row for row in done if int(row["expected"]) or int(row["found"])]
    sums = {key: sum(int(row[key]) for row in with_se) for key in COUNTS}
    share = 100 * sums["found"] / max(1, sums["expected"])
    failed = [row for row in rows if row["failure"]]
    lines = [
        MARKER,
        "",
        f"Written by `make coverage-third-party`; torch {torch.__version__}, float64 on CPU, random weights.",
        f"Of the {total} networks listed in `tests/third_party/networks.py`, "
        + (f"all {total} were run." if len(rows) == total else f"{len(rows)} were run, the smallest of"),
        *([] if len(rows) == total else ["each family first; the others were not tried yet."]),
        f"{len(with_se)} of those that were run have SE on maps of 4 axes, {len(failed)} fail by themselves.",
        "",
        f"**{sums['found']} of {sums['expected']} SE blocks are converted ({share:.2f} %);",
        f"{sums['silent']} are passed over in silence, {sums['wrong']} are wrong.**",
        "",
        "- *expected* is counted while the network runs, by `tests/third_party/products.py`, which uses nothing of",
        "  tiledse: a map times one number a channel, computed from this very map with its rows and columns gone;",
        "- *refused*: no block, but a near miss is named there with its reason; *silent*: nothing is said;",
        "- *wrong*: with one tile a map the network gives other numbers than before, or a block with three strips",
        "  gives others than the old block on each strip alone (for SE written inline: than the recorded steps on",
        f"  each strip alone), by more than {TOLERANCE:.0e} of the largest; or its plan, or the names in its",
        "  state_dict, are not what they were.",
        "",
        "| library | networks | blocks expected | found | refused | silent | wrong | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for library in dict.fromkeys(row["library"] for row in rows):
        own = [row for row in with_se if row["library"] == library]
        counts = [str(sum(int(row[key]) for row in own)) for key in COUNTS]
        worst = max((float(row["worst"]) for row in own), default=0.0)
        package = PACKAGES.get(library, library)
        lines.append(f"| {library} {version(package)} | {len(own)} | {' | '.join(counts)} | {worst:.1e} |")
    lines += [
        "",
        "| network | expected | found | refused | silent | wrong | reasons |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row in with_se:
            counts = [row[key] for key in COUNTS]
            reasons = row["reasons"].replace(" | ", "; ")
            lines.append(f"| {row['library']}: {row['network']} | {' | '.join(counts)} | {reasons} |")
    if failed:
        lines += ["", "Not run:", ""]
        lines += [f"- {row['library']}: {row['network']}: {row['failure']}" for row in failed]
    return "\n".join(lines) + "\n"


def write_section(text: str, page: Path) -> None:
    """Put the section at the end of the page, in the place of the one before."""
    before = page.read_text(encoding="utf-8").partition(MARKER)[0].rstrip()
    page.write_text(f"{before}\n\n{text}", encoding="utf-8")


def main() -> None:
    """Check what is not in the CSV yet and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, default=Path("build/coverage-third-party.csv"))
    parser.add_argument("--page", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="networks whose library or name has this")
    parser.add_argument("--most", type=int, help="check at most so many networks now")
    options = parser.parse_args()
    options.csv.parent.mkdir(exist_ok=True)
    before = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    # What failed or was not right is tried again.
    done = [row for row in before if not row["failure"] and not int(row["silent"]) and not int(row["wrong"])]
    jobs = list(listed())
    known = {(row["library"], row["network"]) for row in done}
    todo = [job for job in jobs if (job[0], job[2]) not in known and options.only in f"{job[0]}: {job[2]}"]
    print(f"{len(jobs)} networks, {len(todo)} to check", flush=True)
    with (
        options.csv.open("w", newline="") as file,
        get_context("spawn").Pool(options.jobs, maxtasksperchild=16) as pool,
    ):
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(done)
        file.flush()
        for row in pool.imap(check, todo[: options.most]):
            writer.writerow(row)
            file.flush()
            print(*(str(value) for value in row.values()), flush=True)
    rows = list(csv.DictReader(options.csv.open()))
    write_section(section(rows, len(jobs)), options.page)
    bad = [row["network"] for row in rows if row["failure"] or int(row["silent"]) or int(row["wrong"])]
    print(
        f"{len(rows) - len(bad)} of {len(rows)} are right{': not ' + ', '.join(bad) if bad else ''}; {options.page}"
    )
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
