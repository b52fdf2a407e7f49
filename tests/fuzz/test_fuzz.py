"""A few inputs of each format, for a second or two; `make fuzz` tries thousands (docs/reliability.md)."""

from __future__ import annotations

import time

import pytest

from .formats import case, names, opened
from .judge import judge
from .mutate import Dice

SECONDS = 1.5
MOST = 150
SEED = 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", names())
def test_damaged_files_are_refused_in_one_line_or_read_to_finite_numbers(name, tmp_path):
    kind = opened(name, tmp_path)
    kind.path.write_bytes(kind.sound(Dice(0)))
    assert judge(kind.read, kind.path).kind == "read"  # networks are built by now
    started, outcomes = time.monotonic(), {"read": 0, "refused": 0}
    for number in range(MOST):
        kind.path.write_bytes(case(kind, SEED, number))
        outcome = judge(kind.read, kind.path)
        assert not outcome.wrong, f"python -m tests.fuzz --case '{name}:{SEED}:{number}': {outcome}"
        outcomes[outcome.kind] += 1
        if number > 10 and time.monotonic() > started + SECONDS:
            break
    assert sum(outcomes.values()) > 10


def test_the_same_number_is_the_same_input(tmp_path):
    for name in ("plan.json", "image.tif", "labels.csv", "recipe.toml"):
        kind = opened(name, tmp_path / name)
        assert [case(kind, 3, n) for n in range(5)] == [case(kind, 3, n) for n in range(5)]
        assert case(kind, 3, 0) != case(kind, 4, 0)


def test_a_reader_that_fails_is_found():
    """The judge itself: each kind of failure is seen."""
    from pathlib import Path

    from tiledse.errors import TiledSEError

    def refuses(path: Path) -> None:
        raise TiledSEError(f"no plan: {path}\x1b[31m")

    def says(path: Path) -> None:
        print("a name: \x1b[31m")

    def fails(path: Path) -> None:
        raise KeyError("blocks")

    path = Path("x")
    assert judge(refuses, path).kind == "refused"
    assert judge(says, path).kind == "escape"
    assert judge(fails, path).kind == "traceback"
    assert judge(lambda _: {"drop": [float("nan")]}, path).kind == "not finite"
    assert judge(lambda _: {"drop": [1.0, "a"]}, path).kind == "read"
