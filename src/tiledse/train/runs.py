"""All runs of a recipe: networks times variants times seeds, each in its folder, with their results side by side."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cost import cost
from ..documents import read_json, write_json
from ..errors import TiledSEError, first_line
from ..extras import missing
from ..files import write_csv, written_whole
from ..locks import locked
from ..networks.converter import convert_shared
from ..networks.finder import find
from ..numerals import quoted
from .loop import Run, Say, Trained, _measure, train
from .objective import Objective, Setting
from .recipe import Recipe
from .sections import Variant

_WRITTEN = ("summary.csv", "checkpoint.pt", "best.safetensors", "result.json")


def objective_of(recipe: Recipe, setting: Setting) -> Objective:
    """The task of a recipe."""
    if recipe.task == "classify":
        from .classification import Classification

        return Classification(recipe, setting)
    if recipe.task == "distill":
        from .distillation import Distillation

        return Distillation(recipe, setting)
    if recipe.task == "segment":
        from .segmentation import Segmentation

        return Segmentation(recipe, setting)
    from .detection import Detection

    return Detection(recipe, setting)


def accelerator(device: str | None, amp: str | None, accumulate: int) -> Any:
    """Hugging Face's Accelerator: the processes that ``torchrun`` or ``accelerate launch`` started, or this one.

    Args:
        device: ``cpu``, or ``cuda``; None takes what there is.
        amp: ``bfloat16`` or ``float16``; None trains in float32.
        accumulate: Micro-batches of a step.

    Raises:
        TiledSEError: accelerate is not installed, or there is no such device.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise missing("training needs", "accelerate", error=error) from error
    if device not in (None, "cpu", "cuda"):
        raise TiledSEError(f"--device {device}: expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise TiledSEError("--device cuda: no GPU that torch can use here; leave it out or take cpu")
    if amp not in (None, "bfloat16", "float16"):
        raise TiledSEError(f"--amp {amp}: expected bfloat16 or float16")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if on_cpu and amp == "float16":
        raise TiledSEError("--amp float16 needs a GPU; take bfloat16 on a CPU")
    if accumulate < 1:
        raise TiledSEError(f"--accumulate {accumulate}: expected at least 1")
    kinds = {None: "no", "bfloat16": "bf16", "float16": "fp16"}
    return Accelerator(cpu=on_cpu, mixed_precision=kinds[amp], gradient_accumulation_steps=accumulate)


def run_all(
    recipe: Recipe, setting: Setting, folder: Path, engine: Any, *, variants: Sequence[str] = (),
    seeds: Sequence[int] = (), networks: Sequence[str] = (), restart: bool = False, notes: dict[str, Any] | None = None,
    say: Say = print,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train every run that is asked for and not done yet; write its result.json when it ends, and results.csv of all.

    Args:
        recipe: The recipe.
        setting: Data and device.
        folder: Where each run has its folder.
        engine: From ``accelerator``.
        variants: Names; all where empty.
        seeds: The recipe's where empty.
        networks: MODELs of the recipe; all where empty.
        restart: Begin again what was begun.
        notes: What the results say of the recipe: its scale and changes.
        say: Takes lines.

    Returns:
        One dictionary for each run, as in its result.json.

    Raises:
        TiledSEError: an unknown variant or network, and all that a run refuses.
    """
    chosen = _chosen(recipe, variants, networks)
    results: list[dict[str, Any]] = []
    for network in chosen[0]:
        own = recipe.for_network(network)
        objective = objective_of(own, setting)
        base = _base(folder, network.model)
        for seed in seeds or own.seeds:
            for variant in _in_order(chosen[1]):
                run = Run(own, variant, seed, base / variant.name / f"seed{seed}")
                run.folder.mkdir(parents=True, exist_ok=True)
                start = _start(run, base)
                with _alone(run.folder, engine):
                    trained = train(objective, run, engine, start=start, restart=restart, say=say)
                result = _result(objective, run, trained, engine, notes or {})
                if engine.is_main_process:
                    _write_json(run.folder / "result.json", result)
                results.append(result)
    if engine.is_main_process:
        write_results(folder)
    return results


def outputs_of(
    recipe: Recipe, folder: Path, *, variants: Sequence[str] = (), seeds: Sequence[int] = (),
    networks: Sequence[str] = (),
) -> list[Path]:  # fmt: skip
    """The files that ``run_all`` writes, so that none of them is read as something else.

    Raises:
        TiledSEError: an unknown variant or network.
    """
    chosen = _chosen(recipe, variants, networks)
    runs = [
        _base(folder, network.model) / variant.name / f"seed{seed}"
        for network in chosen[0]
        for seed in seeds or recipe.for_network(network).seeds
        for variant in chosen[1]
    ]
    return [folder / "results.csv", *(run / name for run in runs for name in _WRITTEN)]


def _base(folder: Path, model: str) -> Path:
    """Where the runs of a network lie."""
    return folder / model.partition(":")[2].replace(":", "-").replace("/", "-")


def write_results(folder: Path) -> None:
    """Gather the result.json of all runs under a folder into results.csv.

    Raises:
        TiledSEError: one of them cannot be read, or results.csv cannot be written.
    """
    with locked(folder / "results.csv"):
        rows = [_read_result(path) for path in sorted(folder.rglob("result.json"))]
        flat = [{k: v for k, v in row.items() if not isinstance(v, (dict, list))} for row in rows]
        write_csv(folder / "results.csv", flat)


def _alone(folder: Path, engine: Any) -> AbstractContextManager[None]:
    """Keep a run's folder from a second process that would train into it; of our own, the first one holds it."""
    if not engine.is_main_process:
        return nullcontext()
    busy = f"another process trains in {folder}; wait for it, or give another folder with -o"
    return locked(folder / "checkpoint.pt", 0, busy)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = read_json(path.read_text("utf-8"))
        if not isinstance(result, dict):
            raise ValueError(f"expected a table of figures, got {quoted(result)}")
    except (OSError, ValueError) as error:
        raise TiledSEError(
            f"{path} is damaged: {first_line(error)}; remove it, or train that run again"
        ) from error
    return result


def _chosen(
    recipe: Recipe, variants: Sequence[str], networks: Sequence[str]
) -> tuple[list[Any], list[Variant]]:
    if not recipe.network:
        raise TiledSEError("the recipe names no network; give one with --model MODEL")
    known = {variant.name: variant for variant in recipe.variant}
    models = {network.model: network for network in recipe.network}
    for name in variants:
        if name not in known:
            raise TiledSEError(f"the recipe has no variant '{name}'; it has {', '.join(known)}")
    for name in networks:
        if name not in models:
            raise TiledSEError(f"the recipe has no network '{name}'; it has {', '.join(models)}")
    return [models[n] for n in networks or models], [known[n] for n in variants or known]


def _in_order(variants: Sequence[Variant]) -> list[Variant]:
    """Those that others start from first."""
    return sorted(variants, key=lambda variant: variant.start not in ("scratch", "weights"))


def _start(run: Run, base: Path) -> Path | None:
    if run.variant.start in ("scratch", "weights"):
        return None
    path = base / run.variant.start / f"seed{run.seed}" / "best.safetensors"
    if not path.is_file():
        raise TiledSEError(
            f"variant '{run.variant.name}' starts from '{run.variant.start}', which is not trained yet (no {path}); "
            f"train it first: --variant {run.variant.start}"
        )
    return path


def _result(
    objective: Objective, run: Run, trained: Trained, engine: Any, notes: dict[str, Any]
) -> dict[str, Any]:
    last, metric = trained.history[-1], objective.metric
    values = [row[metric] for row in trained.history]
    best = (max if objective.higher else min)(values)
    found = find(trained.model, run.recipe.input_size)
    held = cost(found).tse.buffer if len(found) else 0
    figures = {key: last[key] for key in last if key not in ("epoch", "lr", "seconds")}
    return {
        "network": run.recipe.network[0].model, "variant": run.variant.name, "tile": run.variant.tile, "seed": run.seed,
        "epochs": len(trained.history), **figures, f"best_{metric}": best, "best_epoch": values.index(best) + 1,
        "params": sum(p.numel() for p in trained.model.parameters()), "buffer": held,
        "seconds": round(sum(row["seconds"] for row in trained.history), 1),
        "before": trained.before, "as_is": _as_is(objective, run, trained.model, engine), **notes,
        "machine": {
            "device": torch.cuda.get_device_name() if engine.device.type == "cuda" else platform.machine(),
            "processes": engine.num_processes, "torch": torch.__version__, "precision": engine.mixed_precision,
        },
    }  # fmt: skip


def _as_is(objective: Objective, run: Run, model: nn.Module, engine: Any) -> dict[str, dict[str, float]]:
    """The trained SE network with tiles and no training: the paper's TSE^aw."""
    if run.variant.tile != "HxW":
        return {}
    found = find(model, run.recipe.input_size)
    return {
        tile: _measure(objective, convert_shared(model, found.with_tile(tile)), engine)
        for tile in run.recipe.as_is
    }


def _write_json(path: Path, value: Any) -> None:
    with written_whole(path) as part:
        part.write_text(write_json(value, indent=1) + "\n", "utf-8")
