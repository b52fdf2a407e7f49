"""From what a page shows to the page itself, by templates."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from ...names import shown
from .charts import front, intervals, short

# Lines that a reader of many near misses wants to see of one reason.
_NAMES_OF_A_REASON = 6


@lru_cache(maxsize=1)
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("tiledse", "report/page/templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "digits": digits,
        "shown": shown,
        "short": short,
        "percent": percent,
        "kilobytes": kilobytes,
    }
    return made


def rendered(record: dict[str, Any]) -> str:
    """The page of a record, as ``making.report`` gathers it."""
    accuracy = record["accuracy"]
    reasons: dict[str, list[str]] = {}
    for miss in record["near_misses"]:
        reasons.setdefault(miss["reason"], []).append(miss["name"])
    page = _templates().get_template("page.html.j2")
    return page.render(
        page=record,
        best=record["totals"][-1],
        tallest=max(block["height"] for block in record["blocks"]),
        widest=max(block["channels"] for block in record["blocks"]),
        intervals=None if accuracy is None else intervals(accuracy["candidates"]),
        front=None if record["search"] is None else front(record["search"]),
        reasons=[
            (reason, names[:_NAMES_OF_A_REASON], len(names) - _NAMES_OF_A_REASON)
            for reason, names in reasons.items()
        ],
    )


def digits(number: int | None) -> str:
    """A raw count with separators.

    Example:
        >>> digits(285376), digits(None)
        ('285,376', 'not counted')
    """
    return "not counted" if number is None else f"{number:,}"


def percent(part: float, whole: float) -> str:
    """A share of a whole in percent; one digit after the point where it is small.

    Example:
        >>> percent(159152, 285376), percent(1, 3000), percent(0, 0)
        ('56 %', '0.0 %', '0 %')
    """
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %"


def kilobytes(count: float) -> str:
    """Bytes, by powers of 1000.

    Example:
        >>> kilobytes(285376), kilobytes(20073600), kilobytes(12)
        ('285 kB', '20.1 MB', '12 B')
    """
    for size, letters in ((1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {letters}"
    return f"{count:g} B"
