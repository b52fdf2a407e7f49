"""Images for a task, opened for a network: how they are read, prepared and judged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from ..data.opening import open_images
from ..data.preprocessing import Kind, Preprocessing
from ..errors import TiledSEError, TiledSEWarning
from ..network import Network
from .tasks import Task

TASKS = ("classify", "detect", "segment")
TaskName = Literal["classify", "detect", "segment"]


@dataclass(frozen=True)
class TaskImages:
    """Images for a task, and what is said of how they become inputs.

    Args:
        data: classify: class folders, a folder with ``labels.csv``, or tar shards. detect: COCO's annotations.json.
            segment: a folder with images and masks, or a CSV file with ``file,mask``.
        task: What the network does.
        adapter: detect, segment: ``package.module:adapter``, a function of the input size that gives the network's pre-
            and post-processing.
        images_dir: detect: the annotated images; left out, they are beside the annotations.
        masks: segment: PNG masks named as the images.
        preprocess: classify: ``network`` as it was evaluated by its makers; ``crop``: they are scaled already.
        class_map: classify: for class folders, one folder a line in the order of labels.
        mean: classify: of an ONNX file, one a channel, subtracted from values in 0..1.
        std: classify: what values are divided by after that.

    Raises:
        TiledSEError: when made: no such task, or what is said does not go with it.

    Example:
        >>> TaskImages("val", adapter="adapters:detector")
        Traceback (most recent call last):
        tiledse.errors.TiledSEError: --adapter, --images-dir and --masks go with --task detect or segment; ...
    """

    data: str
    task: TaskName | str = "classify"
    adapter: str | None = None
    images_dir: Path | None = None
    masks: Path | None = None
    preprocess: str = "network"
    class_map: Path | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise TiledSEError(f"--task {self.task}: expected classify, detect or segment")
        if self.task == "classify":
            if self.adapter or self.images_dir or self.masks:
                raise TiledSEError(
                    "--adapter, --images-dir and --masks go with --task detect or segment; leave them out"
                )
        elif self.mean or self.std or self.class_map or self.preprocess != "network":
            raise TiledSEError(
                f"--mean, --std, --class-map and --preprocess go with --task classify; for {self.task} an --adapter "
                "prepares the images"
            )

    def open(
        self,
        network: Network,
        *,
        labels: bool = True,
        name: str | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Task[Any]:
        """The task, for one network.

        Args:
            network: The network; its input size is that of the images.
            labels: Whether images without labels are refused.
            name: MODEL, where the network has a shorter name.
            tell: Called with what is taken for granted; left out, that is a warning.

        Raises:
            TiledSEError: the network does not say what its outputs mean, or the images cannot be read.

        Warns:
            TiledSEWarning: nobody says how the network's images are normalised.
        """
        model = name or network.name
        if self.task == "detect":
            return self._detection(network, model)
        if self.task == "segment":
            return self._segmentation(network, model)
        from .classification import Classification, Comparison, open_unlabelled

        prepare = self._preprocessing(network, model, tell or _warn)
        try:
            return Classification(open_images(self.data, prepare, class_map=self.class_map))
        except TiledSEError as error:
            if labels or "no labelled images" not in str(error):
                raise
        return Comparison(open_unlabelled(self.data, prepare))

    def _preprocessing(self, network: Network, model: str, tell: Callable[[str], None]) -> Preprocessing:
        """How images become inputs of a classifier."""
        kind, size = cast(Kind, self.preprocess), network.plan.image_size
        said = {key: value for key, value in (("mean", self.mean), ("std", self.std)) if value is not None}
        if network.says_images:
            if said:
                raise TiledSEError(
                    "--mean and --std go with FILE.onnx and FILE.tflite; a PyTorch network says them itself"
                )
            return Preprocessing.of(nn.Identity(), size, kind, dict(network.config or {}))
        if len(said) < 2:
            tell(
                f"{model} does not say how its images are normalised: taking ImageNet's mean and std; see --mean, --std"
            )
        return Preprocessing.of(nn.Identity(), size, kind, {**said, "input_size": size})

    def _detection(self, network: Network, model: str) -> Task[Any]:
        from .adapters import Detector, effdet_detector, load_adapter
        from .detection import CocoImages, Detection

        if self.masks:
            raise TiledSEError("--masks goes with --task segment; leave it out")
        if self.adapter is not None:
            detector = load_adapter(self.adapter, Detector, network.plan.image_size)
        elif model.startswith("effdet:"):
            detector = effdet_detector(network.module("effdet's decoding"), network.plan.image_size)
        else:
            raise TiledSEError(
                f"{model} does not say how its outputs become boxes; give --adapter package.module:adapter, a function "
                "of the input size that gives a tiledse.evaluate.adapters.Detector (examples/centernet.py is one)"
            )
        return Detection(CocoImages(self.data, detector, self.images_dir), detector)

    def _segmentation(self, network: Network, model: str) -> Task[Any]:
        from ..networks.zoo.catalogue import find_entry
        from .adapters import VOC, Segmenter, load_adapter, semantic, zoo_segmenter
        from .segmentation import MaskedImages, Segmentation

        size = network.plan.image_size
        if self.images_dir:
            raise TiledSEError("--images-dir goes with --task detect; leave it out")
        if self.adapter is not None:
            segmenter = load_adapter(self.adapter, Segmenter, size)
        elif model.startswith("torchvision:"):
            segmenter = semantic(VOC, size)
        elif model.startswith("zoo:") and find_entry(model[4:]).task == "segment":
            segmenter = zoo_segmenter(find_entry(model[4:]), size)
        else:
            raise TiledSEError(
                f"{model} does not say what its outputs mean; give --adapter package.module:adapter, a function of the "
                "input size that gives a tiledse.evaluate.adapters.Segmenter (examples/selfie.py is one)"
            )
        return Segmentation(MaskedImages(self.data, segmenter, self.masks), segmenter)


def _warn(text: str) -> None:
    warnings.warn(text, TiledSEWarning, stacklevel=4)
