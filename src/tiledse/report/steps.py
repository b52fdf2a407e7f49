"""Steps that were written, and what running one took, as text and as JSON types."""

from __future__ import annotations

from typing import Any

from ..stream.frames import words
from ..stream.step.exporting import Exported
from ..stream.step.files import Ran


def exported_record(made: Exported) -> dict[str, Any]:
    """A step that was written, as JSON types."""
    header = made.header
    return {
        "rows": header.rows,
        "unit": header.unit,
        "height": header.height,
        "multiple": header.multiple,
        "latency_rows": header.latency,
        "state_bytes": 4 * header.state_elements,
        "states": len(header.states),
        "outputs": {head.name: list(head.shape) for head in header.heads},
        "max_rel_error": made.max_rel_error,
        "max_rel_error_file": made.max_rel_error_file,
        "files": {what: str(path) for what, path in made.files.items()},
    }


def exported_lines(made: Exported, model: str) -> list[str]:
    """A step that was written, as text."""
    header = made.header
    what, rows = words(header.row_shape)
    heights = f"{header.height} {rows}" if header.height else "any height" if rows == "rows" else "any length"
    if header.multiple > 1:
        heights = f"{'heights' if rows == 'rows' else 'lengths'} in multiples of {header.multiple}"
    whole = (
        f"not compared with a whole {what}, which would be too large"
        if made.max_rel_error is None
        else f"differs from the whole {what} by {made.max_rel_error:.1e} of the largest output"
    )
    return [
        f"{model}: a step of {header.rows} {rows} (multiples of {header.unit} are possible) of {what}s of {heights}",
        f"state: {len(header.states)} arrays, {_bytes(4 * header.state_elements)}; the last output comes "
        f"{header.latency} {rows} after the {what} at the most",
        f"{whole}; the files differ from it in torch by {made.max_rel_error_file:.1e} of the largest number",
        f"wrote {', '.join(str(path) for path in made.files.values())}",
    ]


def run_lines(ran: Ran, name: str) -> list[str]:
    """What running a step took, as text."""
    memory = "an amount that this system does not tell" if ran.rss_delta_bytes is None else (
        f"{ran.rss_delta_bytes / 1e6:.0f} MB"
    )  # fmt: skip
    size, rows = "x".join(map(str, ran.input_size)), words(ran.input_size[2:])[1]
    shapes = ", ".join(
        f"{key} {'x'.join(map(str, shape)) if shape else 'none yet'}" for key, shape in ran.shapes.items()
    )
    return [
        f"{name} on {size}, {ran.rows} {rows} at a time: {ran.seconds:.2f} s with reading and writing; "
        f"outputs: {shapes}",
        f"state {_bytes(ran.state_bytes)}; resident memory grew by {memory}",
    ]


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count < 1e5 else f"{count / 1e6:.2f} MB"
