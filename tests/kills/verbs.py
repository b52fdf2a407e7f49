"""The verbs that are killed: how each is called, what shows that it is at work, and what it must come to."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from tests.train.sets import NETWORK, RECIPE, class_folders, picture

SIZE = ("--input", "3x32x32")


def given(folder: Path) -> None:
    """Images, weights and a recipe, the same each time."""
    import timm
    import torch
    from safetensors.torch import save_file

    class_folders(folder)
    listed = folder / "listed"
    listed.mkdir()
    for number in range(60):
        picture(number % 3, number).save(listed / f"{number}.png")
    (listed / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{n % 3}\n" for n in range(60)))
    torch.manual_seed(0)
    save_file(timm.create_model(NETWORK.partition(":")[2]).state_dict(), folder / "weights.safetensors")
    (folder / "recipe.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 40"))


class Verb(ABC):
    """One verb.

    Args:
        given: The folder of ``given``.
        out: A folder of its own for outputs.
    """

    name: ClassVar[str]

    def __init__(self, given: Path, out: Path) -> None:
        self.given, self.out = given, out
        self.sign = out / "sign"
        self.weights = ("--weights", given / "weights.safetensors")

    @abstractmethod
    def arguments(self) -> list[Any]:
        """After ``tiledse``."""

    @abstractmethod
    def finished(self) -> set[str]:
        """What is finished and must stay, each whole: a half-written thing fails here."""

    @abstractmethod
    def result(self) -> Any:
        """What the verb came to, to be compared with an undisturbed run."""

    def at_work(self) -> int:
        """Grows while the verb works."""
        return len(self.finished())


class Sweep(Verb):
    name = "sweep"

    def arguments(self) -> list[Any]:
        tiles = ",".join(f"{k}xW{form}" for k in range(1, 9) for form in ("", ":running", ":upper"))
        data = ("--data", self.given / "listed", "-o", self.out / "sweep.csv", "--tiles", tiles)
        return ["sweep", NETWORK, *self.weights, *data, *SIZE]

    def finished(self) -> set[str]:
        path = self.out / "sweep.csv"
        if not path.exists():
            return set()
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(None not in row and None not in row.values() for row in rows)
        return {json.dumps(row) for row in rows}

    def result(self) -> Any:
        return sorted(self.finished())


class Search(Verb):
    name = "search"

    def arguments(self) -> list[Any]:
        data = (
            "--data",
            self.given / "listed",
            "-o",
            self.out / "plan.json",
            "--cache",
            self.out / "cache",
            "--force",
        )
        return ["search", NETWORK, *self.weights, *data, *SIZE, "--max-buffer", "3000", "--few", "20"]

    def finished(self) -> set[str]:
        files = sorted((self.out / "cache").glob("[!.]*.json"))
        return {f"{path.name} {json.dumps(json.loads(path.read_text()))}" for path in files}

    def result(self) -> Any:
        return json.loads((self.out / "plan.json").read_text()), sorted(self.finished())


class Calibrate(Verb):
    """Keeps nothing on the way: the plan is whole or not there."""

    name = "calibrate"

    def arguments(self) -> list[Any]:
        data = (
            "--data",
            self.given / "listed",
            "-o",
            self.out / "plan.json",
            "--force",
            "--tile",
            "1xW:running",
        )
        return ["calibrate", NETWORK, *self.weights, *data, *SIZE]

    def finished(self) -> set[str]:
        path = self.out / "plan.json"
        return {json.dumps(json.loads(path.read_text()))} if path.exists() else set()

    def result(self) -> Any:
        return sorted(self.finished())

    def at_work(self) -> int:
        return self.sign.stat().st_size if self.sign.exists() else 0


class Train(Verb):
    name = "train"

    def arguments(self) -> list[Any]:
        return ["train", self.given / "recipe.toml", "--data", self.given, "-o", self.out / "runs",
                "--variant", "se", "--device", "cpu"]  # fmt: skip

    @property
    def _run(self) -> Path:
        return self.out / "runs" / NETWORK.partition(":")[2] / "se" / "seed0"

    def finished(self) -> set[str]:
        path = self._run / "summary.csv"
        if not path.exists():
            return set()
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(None not in row and None not in row.values() for row in rows)
        return {json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in rows}

    def result(self) -> Any:
        from safetensors import safe_open

        # By tensor: the library writes the entries of its header in another order each time.
        with safe_open(self._run / "best.safetensors", framework="np") as file:
            tensors = {key: file.get_tensor(key).tobytes() for key in sorted(file.keys())}
            return sorted(self.finished()), tensors, file.metadata()


class Convert(Verb):
    """Keeps nothing on the way: the file is whole or not there."""

    name = "convert"

    def arguments(self) -> list[Any]:
        return [
            "convert",
            NETWORK,
            *self.weights,
            *SIZE,
            "--tile",
            "1xW",
            "-o",
            self.out / "net.onnx",
            "--force",
        ]

    def finished(self) -> set[str]:
        path = self.out / "net.onnx"
        if not path.exists():
            return set()
        import onnx

        model = onnx.load(path)
        onnx.checker.check_model(model)
        nodes = [node.SerializeToString(deterministic=True).hex() for node in model.graph.node]
        return {
            json.dumps(
                [nodes, [w.SerializeToString(deterministic=True).hex() for w in model.graph.initializer]]
            )
        }

    def result(self) -> Any:
        return sorted(self.finished())

    def at_work(self) -> int:
        # The line that it says when it begins to export; then a temporary file while it writes.
        said = (self.out / "stderr").read_text().count("exporting") if (self.out / "stderr").exists() else 0
        return said + len(list(self.out.glob(".net*")))


VERBS: dict[str, type[Verb]] = {verb.name: verb for verb in (Sweep, Search, Calibrate, Train, Convert)}
