"""Kill verbs at work, again and again, and compare with an undisturbed run: ``python -m tests.kills --kills 20``."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tiledse

from .verbs import VERBS, Verb, given

ROOT = Path(__file__).parents[2]
SOURCE = Path(tiledse.__file__).parents[1]


def started(verb: Verb) -> subprocess.Popen[bytes]:
    """The verb as a process, behind the witness that counts the images which it reads."""
    verb.out.mkdir(parents=True, exist_ok=True)
    verb.sign.unlink(missing_ok=True)
    paths = os.pathsep.join((str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])))
    environment = {**os.environ, "PYTHONPATH": paths, "SIGN": str(verb.sign), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("witness.py")), *map(str, verb.arguments())]
    with (verb.out / "stderr").open("wb") as err:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=err)


def to_the_end(verb: Verb) -> None:
    """Run the verb undisturbed."""
    code = started(verb).wait()
    assert code == 0, f"{verb.name} ended with {code}: {(verb.out / 'stderr').read_text()[-2000:]}"


def loop(name: str, kills: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Kill a verb so often while it works, run it to its end, and compare.

    Returns:
        kills, and how often the verb came to its end meanwhile and was begun anew.
    """
    dice = random.Random(f"{name}:{seed}")
    reference, verb = (
        VERBS[name](folder / "given", folder / name / part) for part in ("undisturbed", "killed")
    )
    to_the_end(reference)
    expected = reference.result()
    counts = {"kills": 0, "ends": 0}
    while counts["kills"] < kills:
        before = verb.finished() if verb.out.exists() else set()
        process = started(verb)
        base, wanted, delay = (
            verb.at_work(),
            dice.choice((1, 1, 2, 3)),
            dice.random() * dice.choice((0, 0.1, 1.0)),
        )
        while process.poll() is None and verb.at_work() < base + wanted:
            time.sleep(0.005)
        if process.poll() is None:
            time.sleep(delay)
        if process.poll() is None:
            seen = verb.finished()
            process.kill()
            process.wait()
            counts["kills"] += 1
            after = verb.finished()
            assert before <= seen <= after, f"{name}: what was finished is gone, kill {counts['kills']}"
            print(f"{name}: kill {counts['kills']}, {len(after)} finished", file=sys.stderr, flush=True)
        else:
            assert process.returncode == 0, (verb.out / "stderr").read_text()[-2000:]
            assert before <= verb.finished(), f"{name}: what was finished is gone"
            assert verb.result() == expected, f"{name}: another result, after kill {counts['kills']}"
            shutil.rmtree(verb.out)
            counts["ends"] += 1
    to_the_end(verb)
    assert verb.result() == expected, f"{name}: another result after {kills} kills"
    return counts


def main() -> int:
    """Run from the command line."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--kills", type=int, default=20)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", nargs="*", default=list(VERBS), choices=VERBS)
    chosen = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given(Path(folder, "given"))
        for name in chosen.only:
            counts = loop(name, chosen.kills, Path(folder), chosen.seed)
            print(
                f"{name}: {counts['kills']} kills, {counts['ends']} ends between, the same result", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
