"""What calibration gave, as lines."""

from __future__ import annotations

from pathlib import Path

from ..choose.held_out import HeldOut


def calibration_lines(found: HeldOut, output: Path) -> list[str]:
    """Blocks and numbers, then the divergence on images that were held out.

    Args:
        found: What ``calibrate_held_out`` gave.
        output: Where it was written.
    """
    return [
        f"{found.calibrated} of {len(found.plan)} SE blocks calibrated on {found.fitted_on} images, "
        f"{found.numbers} numbers: {output}",
        f"divergence from SE on {found.n} other images: {found.before:.4g} before, {found.after:.4g} after",
    ]
