"""The notebook of examples/: its cells are run in order, and what they print is kept in it.

``python -m website.notebook`` runs it and writes what it printed; tests/test_website.py runs it and compares. Its cells
are plain Python, so that no server is needed for that.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_hour.ipynb"


def code_cells(book: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that are run."""
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def run(cell: dict[str, Any], known: dict[str, Any]) -> str:
    """Run one cell as a notebook does: what it prints, and what its last line gives."""
    out = io.StringIO()
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(tree, "<cell>", "exec"), known)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), known)  # type: ignore[attr-defined]
            if value is not None:
                print(repr(value))
    return out.getvalue()


def shown(cell: dict[str, Any]) -> str:
    """What the notebook shows of a cell."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def filled(book: dict[str, Any]) -> dict[str, Any]:
    """The notebook with what its cells print now."""
    known: dict[str, Any] = {}
    for number, cell in enumerate(code_cells(book), 1):
        text = run(cell, known)
        cell["execution_count"] = number
        cell["outputs"] = (
            [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}]
            if text
            else []
        )
    return book


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made = filled(json.loads(NOTEBOOK.read_text("utf-8")))
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
