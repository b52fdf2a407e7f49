"""What the measuring verbs share: how their options become a network and a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ..data.opening import open_images
from ..data.preprocessing import Kind, Preprocessing
from ..errors import TiledSEError
from ..evaluate.processes import joined_processes, own_device, part, together
from ..evaluate.tasks import Task
from ..network import Network
from ..numerals import parse_reals
from ..plan import Plan
from .app import say
from .arguments import tell_random
from .data import Data, Images
from .model import Model
from .progress import progress_bar

T = TypeVar("T")
C = TypeVar("C")


@dataclass(frozen=True)
class Opened:
    """A network and what it is measured on."""

    network: Network
    task: Task[Any]


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5`` as numbers.

    Raises:
        TiledSEError: they are none.
    """
    if text is None:
        return None
    try:
        found = parse_reals(text, "each")
        if option == "--std" and min(found) <= 0:
            raise ValueError("expected each to be above 0")
    except ValueError as error:
        raise TiledSEError(
            f"no numbers: {option} '{text}': {error}; expected one a channel, such as 0.5,0.5,0.5"
        ) from None
    return found


def open_measured(model: Model, where: torch.device, data: Images, labels: bool = True) -> Opened:
    """MODEL and the task that the options ask for.

    Args:
        model: MODEL and its options.
        where: The device.
        data: --data and its options.
        labels: Whether images without labels are refused.

    Raises:
        TiledSEError: wrong use of any of them.
    """
    data.check()
    network = model.open(where)
    network.plan.check_blocks()
    return Opened(network, task_of(model.model, network, data, labels))


def task_of(model: str, network: Network, setting: Images, labels: bool) -> Task[Any]:
    """The task that --data and its options ask of a network.

    Args:
        model: MODEL.
        network: What it opened as.
        setting: --data and its options.
        labels: Whether images without labels are refused.
    """
    if setting.task == "detect":
        return _detection(model, network, setting)
    if setting.task == "segment":
        return _segmentation(model, network.plan.input_size, setting)
    from ..evaluate.classification import Classification, Comparison, open_unlabelled

    prepare = preprocessing(model, network, setting)
    try:
        return Classification(open_images(setting.data, prepare, class_map=setting.class_map))
    except TiledSEError as error:
        if labels or "no labelled images" not in str(error):
            raise
    return Comparison(open_unlabelled(setting.data, prepare))


def preprocessing(model: str, network: Network, setting: Images) -> Preprocessing:
    """How images become inputs of a classifier."""
    kind = cast(Kind, setting.preprocess)
    given = {"mean": numbers("--mean", setting.mean), "std": numbers("--std", setting.std)}
    said = {key: value for key, value in given.items() if value is not None}
    size = network.plan.input_size
    if network.says_images:
        if said:
            raise TiledSEError("--mean and --std go with FILE.onnx; a PyTorch network says them itself")
        return Preprocessing.of(nn.Identity(), size, kind, dict(network.config or {}))
    if len(said) < 2:
        say(
            f"{model} does not say how its images are normalised: taking ImageNet's mean and std; see --mean, --std"
        )
    return Preprocessing.of(nn.Identity(), size, kind, {**said, "input_size": size})


def _detection(model: str, network: Network, setting: Images) -> Task[Any]:
    from ..evaluate.adapters import Detector, effdet_detector, load_adapter
    from ..evaluate.detection import CocoImages, Detection

    if setting.masks:
        raise TiledSEError("--masks goes with --task segment; leave it out")
    if setting.adapter is not None:
        detector = load_adapter(setting.adapter, Detector, network.plan.input_size)
    elif model.startswith("effdet:"):
        detector = effdet_detector(network.module("effdet's decoding"), network.plan.input_size)
    else:
        raise TiledSEError(
            f"{model} does not say how its outputs become boxes; give --adapter package.module:adapter, a function of "
            "the input size that gives a tiledse.evaluate.adapters.Detector (examples/centernet.py is one)"
        )
    return Detection(CocoImages(setting.data, detector, setting.images_dir), detector)


def _segmentation(model: str, size: tuple[int, int, int], setting: Images) -> Task[Any]:
    from ..evaluate.adapters import VOC, Segmenter, load_adapter, semantic, zoo_segmenter
    from ..evaluate.segmentation import MaskedImages, Segmentation
    from ..networks.zoo.catalogue import find_entry

    if setting.images_dir:
        raise TiledSEError("--images-dir goes with --task detect; leave it out")
    if setting.adapter is not None:
        segmenter = load_adapter(setting.adapter, Segmenter, size)
    elif model.startswith("torchvision:"):
        segmenter = semantic(VOC, size)
    elif model.startswith("zoo:") and find_entry(model[4:]).task == "segment":
        segmenter = zoo_segmenter(find_entry(model[4:]), size)
    else:
        raise TiledSEError(
            f"{model} does not say what its outputs mean; give --adapter package.module:adapter, a function of the "
            "input size that gives a tiledse.evaluate.adapters.Segmenter (examples/selfie.py is one)"
        )
    return Segmentation(MaskedImages(setting.data, segmenter, setting.masks), segmenter)


def in_processes(where: torch.device, work: Callable[[bool], T]) -> T | None:
    """Run the same work in every process that torchrun started.

    Args:
        where: The device of this process.
        work: Called with whether this process is the one that speaks.

    Returns:
        What ``work`` gave, in the process that speaks; None in the others.

    Raises:
        TiledSEError: in the process that speaks. All have the same error; were another to fail first, torchrun would
            kill the one that says why.
    """
    with joined_processes(where):
        speaks = part()[0] == 0
        try:
            result = work(speaks)
        except TiledSEError:
            if speaks:
                raise
            return None
    return result if speaks else None


def opened_together(open_: Callable[[], Opened], speaks: bool) -> Opened:
    """Open network and task in every process, and say where weights are random."""
    opened = together(open_)
    tell_random(opened.network.random and speaks)
    return opened


def measured(
    model: Model,
    data: Data,
    check: Callable[[], None],
    choose: Callable[[Plan], C],
    measure: Callable[..., T],
    labels: bool = False,
) -> tuple[str, C, T] | None:
    """One measurement of one network, by all processes that torchrun started.

    Args:
        model: MODEL and its options.
        data: --data and its options.
        check: Refuses wrong use before anything is opened.
        choose: What is measured, from the plan of the network as it was found.
        measure: Called with what was opened, what was chosen, and how: batch_size, workers, device, progress.
        labels: Whether images without labels are refused.

    Returns:
        The name of the network, what was chosen and what was measured, in the process that speaks; else None.

    Raises:
        TiledSEError: wrong use of any option.
    """
    where = own_device(data.device)

    def work(speaks: bool) -> tuple[str, C, T]:
        check()
        chosen: list[C] = []

        def open_() -> Opened:
            opened = open_measured(model, where, data, labels)
            chosen.append(choose(opened.network.plan))
            return opened

        opened = opened_together(open_, speaks)
        with progress_bar("images", shown=speaks) as progress:
            found = measure(
                opened, chosen[0], batch_size=data.batch_size, workers=data.workers, device=where, progress=progress
            )  # fmt: skip
        return opened.network.name, chosen[0], found

    return in_processes(where, work)
