"""What tiledse keeps for itself: evaluations, checkpoints of training, results of runs, the zoo's index."""

from __future__ import annotations

import io
import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from .formats import Format
from .mutate import Dice, change_json, change_zip


class Evaluation(Format):
    """What ``search`` measured before: damage is no error, it is measured again."""

    name, file = "evaluation cache", "key.json"

    def sound(self, dice: Dice) -> bytes:
        kept = {
            "divergence": 0.5,
            "n": 20,
            "score": {"top1": 75.0, "top5": 90.0},
            "drop": 1.0,
            "drop_ci95": [0.5, 1.5],
        }
        return json.dumps({"format": "tiledse.evaluation/1", **kept}).encode()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_json(data, dice)

    def read(self, path: Path) -> Any:
        from tiledse.choose.cache import Evaluations
        from tiledse.choose.evaluation import _evaluated

        found = _evaluated(Evaluations(self.folder).read("key"), True)
        if found is None:
            return None
        # A score that does not exist is null in the file and nan in memory.
        score = {key: 0 if math.isnan(value) else value for key, value in (found.score or {}).items()}
        return score, [value for value in astuple(found) if not isinstance(value, dict)]


class TrainingCheckpoint(Format):
    name, file = "training checkpoint", "last.pt"

    def sound(self, dice: Dice) -> bytes:
        out = io.BytesIO()
        state = {"model": {"w": torch.ones(3)}, "epoch": 1, "history": [{"epoch": 1, "top1": 50.0}]}
        torch.save(
            {"format": "tiledse.checkpoint/1", "identity": {"seed": 0, "recipe": {"epochs": 2}}, **state}, out
        )
        return out.getvalue()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_zip(data, dice)

    def read(self, path: Path) -> Any:
        from tiledse.train.checkpoint import read_checkpoint

        return len(read_checkpoint(path, {"seed": 0, "recipe": {"epochs": 2}}))


class RunResults(Format):
    """The results of runs, gathered into one table."""

    name, file = "result.json of a run", "result.json"

    def sound(self, dice: Dice) -> bytes:
        row = {
            "network": "timm:lcnet_050",
            "variant": "se",
            "seed": 0,
            "epochs": 2,
            "top1": 50.0,
            "notes": {"n": [1]},
        }
        return json.dumps(row).encode()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_json(data, dice)

    def read(self, path: Path) -> Any:
        from tiledse.train.runs import write_results

        write_results(self.folder)


class ZooIndex(Format):
    name, file = "zoo index", "index.json"

    def sound(self, dice: Dice) -> bytes:
        from tiledse.networks.zoo.catalogue import FOLDER

        return (FOLDER / "index.json").read_bytes()

    def damaged(self, data: bytes, dice: Dice) -> bytes:
        return change_json(data, dice)

    def read(self, path: Path) -> Any:
        from tiledse.networks.zoo.catalogue import entries
        from tiledse.report.zoo import zoo_table

        listed = entries(self.folder)
        zoo_table(listed)
        return [(entry.to_dict(), entry.input_size, entry.path) for entry in listed]
