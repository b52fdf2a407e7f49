"""The house: imports run one way between the rooms, and no modules import each other in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "tiledse"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def rooms() -> list[list[str]]:
    """The rows of the table in ARCHITECTURE.md, which is the only place where the order of the rooms stands."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = re.search(r"## The rooms\n.*?\n\|---\|---\|\n(.*?)\n\n", text, re.S)
    assert table is not None
    first = [line.split("|")[1] for line in table[1].splitlines()]
    return [[name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`(.*?)`", c)] for c in first]


ROW = {name: row for row, names in enumerate(rooms()) for name in names}


def imports(tree: ast.AST, module: list[str], typing: bool = False) -> Iterator[tuple[str, bool]]:
    """Modules of tiledse that a module imports, at the top or in a function; whether for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("tiledse")):
            base = module[: len(module) - node.level] if node.level else []
            path = [*base, *(node.module or "").removeprefix("tiledse").strip(".").split(".")]
            for alias in node.names:
                names = [".".join(filter(None, [*path, *tail])) for tail in ([alias.name], [])]
                yield next(name or "__init__" for name in names if (name or "__init__") in MODULES), typing
        elif isinstance(node, ast.Import):
            yield from ((a.name[8:], typing) for a in node.names if a.name.startswith("tiledse."))
        else:
            checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from imports(node, module, typing or checking)


def imported() -> dict[str, set[tuple[str, bool]]]:
    found = {}
    for name, path in MODULES.items():
        package = path.name == "__init__.py" and name != "__init__"
        parts = [*name.split("."), ""] if package else name.split(".")
        found[name] = {pair for pair in imports(ast.parse(path.read_text("utf-8")), parts) if pair[0] != name}
    return found


def test_every_room_stands_once_in_architecture_md():
    named = [name for names in rooms() for name in names]
    assert sorted(named) == sorted({name.partition(".")[0] for name in MODULES})
    assert len(named) > 20


def test_imports_run_one_way_between_rooms():
    arrows = [
        f"{name} imports {other}"
        for name, others in imported().items()
        for other, _ in others
        if ROW[other.partition(".")[0]] > ROW[name.partition(".")[0]]
    ]
    assert not arrows, "\n".join(arrows)


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: {other for other, typing in others if not typing} for name, others in imported().items()}
    assert "op.formula" in graph["op.functional"]
    assert "op.functional" in graph["networks.block"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None
