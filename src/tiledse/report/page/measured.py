"""What the user's own images say: accuracies with intervals, correlation, and the images that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...context.correlation import correlate
from ...data.images import ImageSet
from ...evaluate.accuracy import evaluation_of
from ...evaluate.classification import Classification
from ...evaluate.evaluation import Evaluation
from ...evaluate.tasks import Progress, Results, Task, run
from ...network import Network
from .contact import Thumbnails
from .contents import Candidate

# Images shown of each kind; fewer where the page would grow too large.
MOST_SHOWN = 24


def measure(
    network: Network, shown: Sequence[Candidate], task: Task[Any], batch_size: int, progress: Progress | None
) -> dict[str, Any]:
    """One pass over the images with SE and all candidates side by side, as JSON types.

    Raises:
        TiledSEError: see ``evaluate.tasks.run``.
    """
    tiled = [candidate for candidate in shown if candidate.plan != network.se]
    results = run(
        task, network.branches([candidate.plan for candidate in tiled]), [candidate.name for candidate in shown],
        batch_size=batch_size, device=network.device, progress=progress,
    )  # fmt: skip
    record: dict[str, Any] = {"task": task.name, "metric": task.metric, "n": len(results.names)}
    record["divergence_name"] = task.divergence_name
    record["se"] = {} if not task.metric else _scores(task, results.networks[0])
    record["candidates"] = [
        {
            "name": one.name,
            "divergence": float(np.mean(results.divergence[place])),
            **_paired(task, results, place),
        }
        for place, one in enumerate(tiled)
    ]
    record["sheets"] = sheets(task, results, tiled[-1].name)
    return record


def _scores(task: Task[Any], results: Any) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in task.score(results).items()}


def _paired(task: Task[Any], results: Results[Any], place: int) -> dict[str, Any]:
    if not task.metric:
        return {}
    se, tse = results.networks[0], results.networks[place + 1]
    paired = task.compare(se, tse)
    return {
        "scores": _scores(task, tse),
        "agree": paired.agree,
        "lost": paired.lost,
        "gained": paired.gained,
        "p_value": paired.p_value,
        "drop": paired.drop,
        "drop_ci95": list(paired.drop_ci95),
    }


def sheets(task: Task[Any], results: Results[Any], name: str) -> list[dict[str, Any]]:
    """Contact sheets of the last candidate: images lost and gained; without labels, those furthest from SE."""
    pictures = Thumbnails(task.images)
    if isinstance(task, Classification):
        last = Results(results.names, (results.networks[0], results.networks[-1]), results.divergence[-1:])
        found: Evaluation = evaluation_of(last)
        classes = class_names(task.images)
        rows = {
            kind: [
                (
                    image.name,
                    f"is {classes(image.label)}; SE says {classes(image.se)}, tiles {classes(image.tse)}",
                )
                for image in found.images
                if image.outcome == kind
            ]
            for kind in ("lost", "gained")
        }
        about = {"lost": "SE right, tiles wrong", "gained": "tiles right, SE wrong"}
    elif task.name == "compare":
        far = np.argsort(results.divergence[-1])[::-1][:MOST_SHOWN]
        rows = {"furthest": [(results.names[i], f"{results.divergence[-1][i]:.2g}") for i in far]}
        about = {"furthest": f"largest {task.divergence_name}"}
    else:
        rows = _changed(task, results)
        about = {"lost": f"its own {task.metric} fell", "gained": f"its own {task.metric} rose"}
    return [
        {
            "kind": kind,
            "about": about[kind],
            "candidate": name,
            "of": len(found_rows),
            "images": pictures.of(found_rows[:MOST_SHOWN]),
        }
        for kind, found_rows in rows.items()
    ]


def _changed(task: Task[Any], results: Results[Any]) -> dict[str, list[tuple[str, str]]]:
    """Images whose own metric fell or rose, those first that changed most; all together are scored otherwise."""
    se, tse = task.alone(results.networks[0]), task.alone(results.networks[-1])
    if se is None or tse is None:
        return {}
    change = tse - se
    captions = [f"SE {a:.1f}, tiles {b:.1f}" for a, b in zip(se, tse, strict=True)]
    lost = [i for i in np.argsort(change, kind="stable") if change[i] < -1e-9]
    gained = [i for i in np.argsort(-change, kind="stable") if change[i] > 1e-9]
    named = {"lost": lost, "gained": gained}
    return {kind: [(results.names[i], captions[i]) for i in places] for kind, places in named.items()}


def class_names(images: ImageSet) -> Any:
    """What a label is called: the class folder, where the set is of those; else its number."""
    files = getattr(images, "files", ())
    folders = {label: name.partition("/")[0] for name, label in files if "/" in name}
    known = images.classes is not None and len(folders) == images.classes
    return lambda label: folders.get(label, str(label)) if known else str(label)


def correlations(
    network: Network, shown: Sequence[Candidate], images: ImageSet, batch_size: int, progress: Progress | None
) -> list[list[dict[str, float | None]]]:
    """For each block and candidate, how well its tile stands in for the map: Pearson's r, descriptors and gates."""
    each = [list(dict.fromkeys(c.plan.tiles[number] for c in shown)) for number in range(len(network.plan))]
    found = correlate(network, images, each, batch_size=batch_size, device=network.device, progress=progress)
    by_tile = {(entry.block.name, entry.tile): entry for entry in found.blocks}
    records = []
    for number, block in enumerate(network.plan.blocks):
        own = [by_tile[block.name, candidate.plan.tiles[number]] for candidate in shown]
        records.append([{"squeeze": _r(one.squeeze.all), "excite": _r(one.excite.all)} for one in own])
    return records


def _r(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
