"""Make the page: gather what it shows, and render it small enough to be sent by mail."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...data.images import ImageSet
from ...errors import TiledSEError
from ...evaluate.classification import Classification
from ...evaluate.tasks import Progress, Task
from ...files import written_whole
from ...network import Network
from ...opening import open as open_network
from ...plan import Plan
from ...targets import Target
from .contents import block_records, candidates, simulated, totals
from .measured import correlations, measure
from .render import rendered
from .timeline import timelines
from .written import written_for

# A page larger than this is sent in pieces by nobody; pictures, then instants, are left out until it fits.
MOST_BYTES = 2_000_000
INSTANTS = (480, 240, 120)
PICTURES = (24, 12, 6, 0)
_VERSIONS = ("tiledse", "torch", "timm", "onnx", "onnxruntime", "numpy")

Titled = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Page:
    """A report on one network.

    Args:
        html: The page, which needs no other file.
        record: What it shows, as JSON types.
    """

    html: str
    record: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            TiledSEError: the file cannot be written.
        """
        with written_whole(path) as part:
            part.write_text(self.html, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """What the page shows, without pictures and timelines."""
        kept = {key: value for key, value in self.record.items() if key not in ("timeline", "accuracy")}
        kept["blocks"] = [_without(block, "outline") for block in kept["blocks"]]
        accuracy = self.record["accuracy"]
        if accuracy is not None:
            accuracy = {key: value for key, value in accuracy.items() if key != "sheets"}
        timeline = self.record["timeline"]
        if timeline is not None:
            timeline = [
                {key: p[key] for key in ("name", "cycles", "first", "period", "stalls", "fifo", "held")}
                for p in timeline["pipelines"]
            ]
        return {**kept, "accuracy": accuracy, "pipelines": timeline, "bytes": len(self.html.encode())}


def _without(block: dict[str, Any], key: str) -> dict[str, Any]:
    own = [{k: v for k, v in one.items() if k != key} for one in block["candidates"]]
    return {**block, "candidates": own}


def report(
    model: Any,
    plans: Plan | Mapping[str, Plan] | Sequence[Plan] | None = None,
    images: ImageSet | Task[Any] | None = None,
    *,
    input_size: Sequence[int] | None = None,
    target: str | Target | None = None,
    search: Mapping[str, Any] | Any = None,
    output: str | Path | None = None,
    command: str | None = None,
    batch_size: int = 16,
    titled: Titled | None = None,
) -> Page:
    """Show what tiles do to a network, on one page that opens from disk and loads nothing.

    The page has the network as a strip of blocks; what SE, 7xW and each plan hold, per block and in all; the rows of
    each block over time; a pipeline with SE and with tiles over time; near misses with their reasons. With images it
    has accuracies with intervals, correlations and the images that differ.

    Args:
        model: The network, or what ``tiledse.open`` takes.
        plans: Plans to put beside SE and ``7xW``, by what the page is to call them.
        images: Labelled images of a classifier (``tiledse.open_images``), or the task: what is measured on what.
        input_size: (C, H, W), where the network is not open and does not say it.
        target: A compiler or runtime (``tiledse.targets``): its operators for each block are shown.
        search: What a search gave (``tiledse.search``, or its ``to_dict``), for its front.
        output: Where the page is written; None writes nothing.
        command: What made the page, for its last lines.
        batch_size: Images in a batch.
        titled: Makes the progress of a step from its title.

    Returns:
        The page.

    Raises:
        TiledSEError: no SE block, a plan of another network, images that cannot be read, or the file cannot be written.

    Example:
        >>> import timm
        >>> from tiledse.report.page import report
        >>> page = report(timm.create_model("lcnet_050"), input_size=(3, 64, 64))
        >>> [one["name"] for one in page.record["totals"]], page.html[:15]
        (['SE', '7xW', '1xW:running+6'], '<!doctype html>')
    """
    found_before = None if search is None else search_record(search)
    titled = titled or (lambda title: nullcontext(lambda done, total: None))
    size = input_size
    if size is None and isinstance(plans, Plan) and not isinstance(model, Network):
        size = plans.input_size
    network = model if isinstance(model, Network) else open_network(model, size)
    _ = network.plan.image_size  # which says so where it takes no images
    shown = candidates(network, plans)
    blocks = block_records(shown)
    with titled("pipelines"):
        pipelines, no_timeline = simulated(network, shown)
    written = None
    if target is not None:
        with titled(f"writing for {target if isinstance(target, str) else target.name}"):
            written = written_for(network, shown, target)
    accuracy = None
    if images is not None:
        task = images if isinstance(images, Task) else Classification(images)
        with titled("images") as progress:
            accuracy = measure(network, shown, task, batch_size, progress)
        with titled("correlation") as progress:
            found = correlations(network, shown, task.images, batch_size, progress)
        for block, own in zip(blocks, found, strict=True):
            for one, r in zip(block["candidates"], own, strict=True):
                one["correlation"] = r
    record: dict[str, Any] = {
        "model": network.name,
        "kind": network.kind,
        "input": list(network.plan.input_size),
        "random": network.random,
        "totals": totals(shown),
        "blocks": blocks,
        "near_misses": [{"name": miss.name, "reason": miss.reason} for miss in network.plan.near_misses],
        "uncounted": list(network.plan.network.uncounted) if network.plan.network is not None else [],
        "target": written,
        "accuracy": accuracy,
        "search": found_before,
        "no_timeline": no_timeline,
        "command": command,
        "versions": {"Python": platform.python_version(), **_versions()},
        "made": date.today().isoformat(),
    }
    names = [candidate.name for candidate in shown]
    page = _fitting(record, lambda instants: timelines(names, pipelines, instants) if pipelines else None)
    if output is not None:
        page.save(output)
    return page


def _fitting(record: dict[str, Any], timeline: Callable[[int], Any]) -> Page:
    """The page with as many pictures and instants as it has room for."""
    page = None
    for instants, pictures in [(INSTANTS[0], n) for n in PICTURES] + [
        (n, PICTURES[-1]) for n in INSTANTS[1:]
    ]:
        now = {**record, "timeline": timeline(instants)}
        if record["accuracy"] is not None:
            sheets = [{**s, "images": s["images"][:pictures]} for s in record["accuracy"]["sheets"]]
            now["accuracy"] = {**record["accuracy"], "sheets": sheets}
        page = Page(rendered(now), now)
        if len(page.html.encode()) <= MOST_BYTES:
            break
    assert page is not None
    return page


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def search_record(search: Any) -> dict[str, Any]:
    """What a search gave, as ``tiledse search --json`` prints it, checked to be that.

    Raises:
        TiledSEError: it is something else.
    """
    record = search.to_dict() if hasattr(search, "to_dict") else search
    needed = ("metric", "n", "points", "chosen")
    absent = [key for key in needed if not isinstance(record, Mapping) or key not in record]
    if absent or not record["points"]:
        raise TiledSEError(
            f"no search: expected what `tiledse search --json` prints, and it has no '{(absent or ['points'])[0]}'"
        )
    return dict(record)
