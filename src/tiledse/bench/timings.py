"""All timings of one run: the operator, whole networks, torch.compile; and which targets they reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from ..errors import TiledSEError
from .compiled_operator import COMPILED_SHAPES, CompiledComparison, compare_compiled
from .machine import keep_freed_memory, machine
from .operator import LAYOUTS, SHAPES, TILES, Comparison, compare
from .targets import Verdict, verdicts
from .whole_networks import NETWORKS, NetworkComparison, compare_network

T = TypeVar("T")
Titled = Callable[[str], "AbstractContextManager[Callable[[int, int | None], None]]"]
PARTS = ("operator", "networks", "compile")


@dataclass(frozen=True)
class Wanted:
    """What is timed, and how.

    Args:
        parts: Of ``operator``, ``networks`` and ``compile``.
        tiles: For the operator.
        shapes: The first so many maps.
        repeats: Turns that the cases take.
        threads: Of torch.
        allocator: ``keep``: freed memory is kept. ``system``: the C library's own settings.

    Raises:
        TiledSEError: when made: no such part, tile or allocator, or a number that is too small.
    """

    parts: tuple[str, ...] = ("operator", "networks")
    tiles: tuple[str, ...] = TILES
    shapes: int = len(SHAPES)
    repeats: int = 15
    threads: int = 1
    allocator: str = "keep"

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise TiledSEError(f"--only {part}: expected operator, networks or compile")
        if self.allocator not in ("keep", "system"):
            raise TiledSEError(f"--allocator {self.allocator}: expected keep or system")
        if not set(self.tiles) <= set(TILES):
            raise TiledSEError(f"--tiles {','.join(self.tiles)}: expected some of {', '.join(TILES)}")
        if self.repeats < 2 or self.threads < 1 or not 1 <= self.shapes <= len(SHAPES):
            raise TiledSEError(
                f"expected at least 2 repeats, 1 thread and 1 to {len(SHAPES)} shapes, got {self.repeats}, "
                f"{self.threads}, {self.shapes}"
            )


@dataclass(frozen=True)
class Timings:
    """What was timed in one run.

    Args:
        machine: What a timing depends on besides the code.
        operator: The operator, by map, layout and tile.
        networks: Whole networks.
        compiled: The operator under torch.compile.
    """

    machine: dict[str, Any]
    operator: list[Comparison] = field(default_factory=list)
    networks: list[NetworkComparison] = field(default_factory=list)
    compiled: list[CompiledComparison] = field(default_factory=list)

    @property
    def verdicts(self) -> list[Verdict]:
        """The targets, and whether they are reached."""
        return verdicts(self.operator, self.networks)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the keys of ``bench``."""
        compiled = {"compile": [one.to_dict() for one in self.compiled]} if self.compiled else {}
        return {
            "format": "tiledse.bench/1",
            "machine": self.machine,
            "targets": [verdict.to_dict() for verdict in self.verdicts],
            "operator": [one.to_dict() for one in self.operator],
            "networks": [one.to_dict() for one in self.networks],
            **compiled,
        }


def time_all(wanted: Wanted, titled: Titled | None = None) -> Timings:
    """Time what is wanted, one after the other, with torch's threads as they are wanted.

    Args:
        wanted: What, and how.
        titled: Makes the progress of a part from its title.
    """
    titled = titled or (lambda title: nullcontext(lambda done, total: None))
    allocator = wanted.allocator if wanted.allocator == "system" or keep_freed_memory() else "system"
    before = torch.get_num_threads()
    torch.set_num_threads(wanted.threads)
    try:
        operator = _operator(wanted, titled) if "operator" in wanted.parts else []
        networks = _networks(max(2, wanted.repeats // 2), titled) if "networks" in wanted.parts else []
        compiled = _compiled(wanted.repeats, titled) if "compile" in wanted.parts else []
    finally:
        torch.set_num_threads(before)
    facts = {**machine(allocator), "threads": wanted.threads, "repeats": wanted.repeats}
    return Timings(facts, operator, networks, compiled)


def _operator(wanted: Wanted, titled: Titled) -> list[Comparison]:
    work = [(s, layout, t) for s in SHAPES[: wanted.shapes] for layout in LAYOUTS for t in wanted.tiles]
    with titled("operator") as progress:
        return [compare(*case, wanted.repeats) for case in _counted(work, progress)]


def _networks(repeats: int, titled: Titled) -> list[NetworkComparison]:
    work = [(name, shape, layout, tile) for name, shape, tile in NETWORKS for layout in LAYOUTS]
    with titled("networks") as progress:
        return [compare_network(*case, repeats=repeats) for case in _counted(work, progress)]


def _compiled(repeats: int, titled: Titled) -> list[CompiledComparison]:
    work = [(shape, layout) for shape in COMPILED_SHAPES for layout in LAYOUTS]
    with titled("compile") as progress:
        return [compare_compiled(*case, repeats) for case in _counted(work, progress)]


def _counted(work: Sequence[T], progress: Callable[[int, int | None], None]) -> Iterator[T]:
    for number, case in enumerate(work):
        progress(number, len(work))
        yield case
