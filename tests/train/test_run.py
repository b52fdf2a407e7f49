"""`tiledse train` from a recipe to its files: the same curve however it is cut up, and one line on what is wrong."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiledse as ts
from tests.cli.running import assert_refused, tiledse
from tests.train.sets import class_folders, listed, shards
from tiledse.train.optimisation import make_schedule

SE = ("--variant", "se", "--device", "cpu")
RUN = Path("test_efficientnet", "se", "seed0")


def rows(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same(one, other):
    """The same curve and the same weights, to the bit."""
    assert rows(one) == rows(other)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    a, b = load_file(one / "best.safetensors"), load_file(other / "best.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)


def command(*arguments):
    return [sys.executable, "-m", "tiledse", *map(str, arguments)]


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(ts.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


class TellsEpochs:
    """Standard error that calls a function at the line of an epoch."""

    def __init__(self, epoch, act):
        self.text, self._mark, self._act = "", f"epoch {epoch}/", act

    def write(self, text):
        self.text += text
        if self._mark in text:
            self._act()

    def flush(self):
        pass


def acting(epoch, act, *arguments):
    """One call of ``tiledse`` in this process; (exit status, standard error)."""
    out, err = sys.stdout, sys.stderr
    sys.stderr = told = TellsEpochs(epoch, act)
    try:
        code = ts.cli.main([str(one) for one in arguments])
    finally:
        sys.stdout, sys.stderr = out, err
    return code, told.text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 4 epochs and 12 steps each, from disk, and the command that made it."""
    from accelerate.state import AcceleratorState

    folder = tmp_path_factory.mktemp("whole")
    data = class_folders(folder / "data", train=32)
    from tests.train.sets import RECIPE

    text = RECIPE.replace("cache = 32", "cache = 0\nema = 0.9").replace("epochs = 3", "epochs = 4")
    (folder / "recipe.toml").write_text(text)
    given = ["train", folder / "recipe.toml", "--data", data, *SE]
    done = tiledse(*given, "-o", folder / "runs", "--json")
    assert done.code == 0, done.err
    AcceleratorState._reset_state(True)
    return given, folder / "runs" / RUN, json.loads(done.out)


def test_what_a_run_leaves(whole):
    _, folder, printed = whole
    assert sorted(p.name for p in folder.iterdir()) == [
        ".checkpoint.pt.lock", "best.safetensors", "checkpoint.pt", "result.json", "summary.csv", "tensorboard",
    ]  # fmt: skip
    curve = rows(folder)
    assert [row["epoch"] for row in curve] == ["1", "2", "3", "4"]
    losses = [float(row["train_loss"]) for row in curve]
    assert min(losses[1:]) < losses[0] / 2  # of a few images, so the last one may jump
    result = json.loads((folder / "result.json").read_text())
    assert printed["results"] == [result]
    assert result["network"] == "timm:test_efficientnet"
    assert result["best_top1"] == max(float(row["top1"]) for row in curve)
    assert result["top1"] == float(curve[-1]["top1"]) > 50  # a third by chance; colours are easy
    assert (result["recipe"], result["scale"], result["changed"]) == ("recipe.toml", "", [])
    assert len(ts.Plan.load(folder / "best.safetensors")) == 2
    with (folder.parents[2] / "results.csv").open() as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["se"]
    assert list((folder / "tensorboard").iterdir())


def test_its_weights_go_into_the_other_verbs(whole, tmp_path):
    """A head of three classes, where the network's own has a thousand."""
    given, folder, printed = whole
    best = folder / "best.safetensors"
    names = ("timm:test_efficientnet", "--weights", best, "--input", "3x32x32")
    done = tiledse("eval", *names, "--tile", "1xW", "--data", given[3] / "val", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["n"] == 12
    # Images are resized before the crop here, and were stretched to the input in training.
    assert told["se"]["top1"] == pytest.approx(printed["results"][0]["best_top1"], abs=17)
    assert_refused(
        tiledse("find", "timm:test_byobnet", "--weights", best, "--input", "3x32x32"),
        "do not fit the network",
    )


@pytest.mark.slow  # an interrupt and a full disk are tried by default; `make kills` kills twenty times
def test_killed_in_mid_epoch_it_goes_on_to_the_same_curve(whole, tmp_path):
    given, folder, _ = whole
    process = subprocess.Popen(
        command(*given, "-o", tmp_path), env=environment(), stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "epoch 2/4" in line:
            break
    # Somewhere in the next epoch, or in the one after it on a fast machine; it has four.
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(rows(tmp_path / RUN)) < 4
    done = tiledse(*given, "-o", tmp_path)
    assert done.code == 0, done.err
    assert any(f"going on after epoch {epoch}" in done.err for epoch in (2, 3))
    assert "epoch 2/4" not in done.err
    assert_same(folder, tmp_path / RUN)


@pytest.mark.parametrize("epoch", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_an_interrupt_ends_with_130_and_goes_on(whole, tmp_path, epoch):
    """Also in the last epoch: a run that is over is over, but the command ends."""
    given, folder, _ = whole
    before = signal.getsignal(signal.SIGINT)
    code, err = acting(epoch, lambda: signal.raise_signal(signal.SIGINT), *given, "-o", tmp_path)
    assert code == 130
    assert signal.getsignal(signal.SIGINT) is before
    lines = [line for line in err.splitlines() if line]
    assert (
        lines[-1] == f"tiledse: interrupted; the same command goes on from the last whole epoch in {tmp_path}"
    )
    assert len(lines) == epoch + 1
    assert len(rows(tmp_path / RUN)) == epoch
    assert tiledse(*given, "-o", tmp_path).code == 0
    assert_same(folder, tmp_path / RUN)


def test_what_is_done_is_not_done_again(whole, tmp_path):
    given, folder, printed = whole
    before = weights(folder)
    done = tiledse(*given, "-o", folder.parents[2], "--json")
    assert done.code == 0
    assert "epoch" not in done.err
    assert json.loads(done.out) == printed
    assert all(torch.equal(before[key], value) for key, value in weights(folder).items())


def test_a_log_that_was_lost_is_written_again(whole, tmp_path):
    """A run killed between its last checkpoint and its last line of summary.csv."""
    given, folder, _ = whole
    (tmp_path / RUN).mkdir(parents=True)
    for name in ("checkpoint.pt", "best.safetensors"):
        (tmp_path / RUN / name).write_bytes((folder / name).read_bytes())
    assert tiledse(*given, "-o", tmp_path).code == 0
    assert_same(folder, tmp_path / RUN)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epochs=5", "epochs is 4 there and 5 here"),
        ("optimizer.lr=0.1", "optimizer.lr is 0.02 there and 0.1 here"),
        ("augment.flip=0", "augment.flip is 0.5 there and 0.0 here"),
    ],
)
def test_a_checkpoint_of_another_recipe(whole, change, said):
    given, folder, _ = whole
    before = (folder / "checkpoint.pt").read_bytes()
    done = tiledse(*given, "-o", folder.parents[2], "--set", change)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(
        f"tiledse: {folder / 'checkpoint.pt'} is of another recipe: {said}"
    )
    assert "--restart" in done.err
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_damaged_checkpoints(whole, tmp_path):
    given, folder, _ = whole
    (tmp_path / RUN).mkdir(parents=True)
    path = tmp_path / RUN / "checkpoint.pt"
    path.write_bytes((folder / "checkpoint.pt").read_bytes()[:5000])
    assert_refused(tiledse(*given, "-o", tmp_path), "cannot read checkpoint", "--restart")
    torch.save({"model": {}}, path)
    assert_refused(tiledse(*given, "-o", tmp_path), "no checkpoint of this version", "--restart")
    torch.save({"format": "tiledse.checkpoint/1", "identity": Path("x")}, path)
    assert_refused(tiledse(*given, "-o", tmp_path), "cannot read checkpoint")


def test_a_full_disk_leaves_the_checkpoint_before(whole, tmp_path):
    """The limit of a file's size stands for a full disk: a write fails in its middle."""
    given, folder, _ = whole
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        code, err = acting(
            2, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard)), *given, "-o", tmp_path
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith(f"tiledse: cannot write {tmp_path / RUN}"), err
    assert "File too large" in last
    assert "Traceback" not in err
    state = torch.load(tmp_path / RUN / "checkpoint.pt", weights_only=True)
    assert len(state["history"]) == 2
    hidden = [p.name for p in (tmp_path / RUN).iterdir() if p.name.startswith(".")]
    assert hidden in ([], [".checkpoint.pt.lock"])  # no part of a file
    assert tiledse(*given, "-o", tmp_path).code == 0
    assert_same(folder, tmp_path / RUN)


def test_no_number(recipe, folders, tmp_path):
    given = ("train", recipe, "--data", folders, "-o", tmp_path, *SE)
    assert tiledse(*given, "--set", "epochs=1").code == 0
    before = (tmp_path / RUN / "checkpoint.pt").read_bytes()
    done = tiledse(*given, "--set", "epochs=1", "--set", "optimizer.lr=1e30", "--restart")
    assert done.code == 2
    assert "seed 0: the loss is no number any more" in done.err.splitlines()[-1]
    assert "lower optimizer.lr" in done.err
    assert (tmp_path / RUN / "checkpoint.pt").read_bytes() == before


@pytest.mark.slow
def test_two_processes_are_two_accumulated_steps(recipe, folders, tmp_path):
    """Normalisation sees a micro-batch in both, so the gradients are the same; its running statistics are not."""
    given = ["train", recipe, "--data", folders, *SE, "--set", "optimizer.lr=0.005"]
    done = tiledse(*given, "-o", tmp_path / "one", "--accumulate", 2)
    assert done.code == 0, done.err
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.run(
        [*start, "-m", "tiledse", *map(str, given), "-o", str(tmp_path / "two")],
        env=environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("epoch 3/3") == 1  # one process speaks
    one, two = (weights(tmp_path / name / RUN) for name in ("one", "two"))
    first = {name: value.detach() for name, value in torch_model().named_parameters()}
    assert first.keys() < one.keys()
    for name in first:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)
    assert max(float((one[name] - first[name]).abs().max()) for name in first) > 1e-3  # they did move
    losses = [[float(row["train_loss"]) for row in rows(tmp_path / name / RUN)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def torch_model():
    from tiledse.networks.building import build_classifier
    from tiledse.train.images import mix

    torch.manual_seed(mix(0))
    return build_classifier("timm:test_efficientnet", 3, (3, 32, 32))


def test_order_and_workers_change_nothing(whole, tmp_path):
    """Reading in another process gives the same run."""
    given, folder, _ = whole
    done = tiledse(*given, "-o", tmp_path, "--workers", 1)
    assert done.code == 0, done.err
    assert_same(folder, tmp_path / RUN)


@pytest.mark.parametrize("layout", [listed, shards])
def test_other_layouts_train_too(recipe, tmp_path, layout):
    data = layout(tmp_path / "data")
    done = tiledse("train", recipe, "--data", data, "-o", tmp_path / "runs", *SE, "--set", "epochs=1")
    assert done.code == 0, done.err
    assert "top-1 %" in done.out
    assert "not the recipe's own size: epochs = 1 (recipe: 3)" in done.out


def test_variants_start_from_each_other(recipe, folders, tmp_path):
    """Fine-tuning: the row begins with what the SE row ended with."""
    text = recipe.read_text() + '[[variant]]\nname = "ft"\ntile = "1xW"\nstart = "se"\n'
    text = text.replace("epochs = 3", 'epochs = 1\nas_is = ["1xW", "1xW:running"]').replace(
        "lr = 0.02", "lr = 0.0"
    )
    recipe.write_text(text)
    given = ("train", recipe, "--data", folders, "-o", tmp_path / "runs", "--device", "cpu")
    assert_refused(tiledse(*given, "--variant", "ft"), "starts from 'se'", "not trained yet", "--variant se")
    done = tiledse(*given, "--variant", "ft", "--variant", "se", "--json")
    assert done.code == 0, done.err
    se, ft = json.loads(done.out)["results"]
    assert (se["variant"], ft["variant"]) == ("se", "ft")
    assert set(se["as_is"]) == {"1xW", "1xW:running"}
    assert ft["as_is"] == {}
    folder = tmp_path / "runs" / "test_efficientnet"
    a, b = weights(folder / "se" / "seed0"), weights(folder / "ft" / "seed0")
    learnt = [key for key in a if "running" not in key and "num_batches" not in key]
    assert all(torch.equal(a[key], b[key]) for key in learnt)
    assert str(ts.Plan.load(folder / "ft" / "seed0" / "best.safetensors").tiles[0]) == "1xW"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (["--set", "classes=2"], ["3 class folders", "2 classes", "set classes = 3"]),
        (["--set", "classes=4"], ["3 class folders", "4 classes"]),
        (["--set", "batch_size=64"], ["24 training images", "fewer than one batch of 64"]),
        (["--accumulate", "3"], ["batch of 8", "1 processes times 3"]),
        (["--accumulate", "0"], ["--accumulate 0"]),
        (["--variant", "7xW"], ["no variant '7xW'", "se, 1xW"]),
        (["--model", "timm:resnet18"], ["no network 'timm:resnet18'", "timm:test_efficientnet"]),
        (["--scale", "small"], ["no scale 'small'"]),
        (["--set", "epoch=1"], ["no key 'epoch'", "epochs"]),
        (["--set", "epochs"], ["expected key=value"]),
        (["--set", "optimizer.name=sdg"], ["sdg", "optimizer"]),
        (["--set", "variant=[{name='w',start='weights'}]"], ["give them with --weights"]),
        (["--weights", "none.pt"], ["no weights file none.pt"]),
        (["--amp", "float16"], ["needs a GPU"]),
        (["--amp", "int8"], ["bfloat16 or float16"]),
        (["--device", "tpu"], ["cpu or cuda"]),
        (["--workers", "-1"], ["workers"]),
        (["--set", "augment.jitter=0.4"], ["augment.jitter is not done on kept images"]),
        (["--set", "network=[{model='timm:regnety_02'}]"], ["no model 'regnety_02'", "did you mean"]),
        (["--set", "network=[{model='timm:resnet10t'}]"], ["no squeeze-and-excite block"]),
        (["--set", "network=[]"], ["names no network", "--model"]),
    ],
)
def test_wrong_use(recipe, folders, tmp_path, change, parts):
    se = () if "--variant" in change or "variant=" in change[-1] else ("--variant", "se")
    given = ("train", recipe, "--data", folders, "-o", tmp_path / "runs", "--device", "cpu", *se)
    done = tiledse(*given, *change)
    assert done.code == 2, done
    lines = [line for line in done.err.splitlines() if not line.startswith("not the recipe's own size: ")]
    assert len(lines) == 1, done.err
    for part in parts:
        assert part in lines[0], lines[0]


def test_wrong_places(recipe, folders, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("mine")
    assert_refused(tiledse("train", recipe, "--data", folders, "-o", taken, *SE), "it is a file")
    assert taken.read_text() == "mine"
    given = ("train", recipe, "-o", tmp_path / "runs", *SE)
    assert_refused(tiledse(*given, "--data", tmp_path / "none"), "there is no such folder")
    assert_refused(tiledse(*given, "--data", tmp_path), "expected the folders train and val")
    assert_refused(tiledse(*given, "--data", folders, "--data", folders), "given 2 times")
    assert not (tmp_path / "runs" / RUN / "checkpoint.pt").exists()


def test_labels_beyond_the_head(recipe, tmp_path):
    data = listed(tmp_path / "data")
    path = data / "train" / "labels.csv"
    path.write_text(path.read_text().replace("2_7.png,2", "2_7.png,9"))
    done = tiledse("train", recipe, "--data", data, "-o", tmp_path / "runs", *SE)
    assert_refused(done, "the part 'train' has the label 9", "set classes = 10")


def test_finetune(whole, tmp_path):
    """From trained SE weights to a tile; the file goes into the other verbs."""
    given, folder, _ = whole
    data, best = given[3], folder / "best.safetensors"
    verb = ("finetune", "timm:test_efficientnet", "--data", data, "--device", "cpu", "--weights", best)
    small = ("--set", "classes=3", "--set", "input=3x32x32", "--set", "epochs=1", "--set", "batch_size=8")
    # Its normalisation saw 48 batches: frozen, it bears small steps only.
    small = (*small, "--set", "optimizer.lr=0.0005")
    done = tiledse(*verb, "--tile", "1xW:running", "-o", tmp_path, *small, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)["results"][0]
    assert (result["variant"], result["tile"], result["recipe"]) == ("1xW-running", "1xW:running", "finetune")
    own = tmp_path / "test_efficientnet" / "1xW-running" / "seed0"
    assert str(ts.Plan.load(own / "best.safetensors").tiles[0]) == "1xW:running"
    # Normalisation keeps its statistics.
    before, after = load_file(best), load_file(own / "best.safetensors")
    running = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert running
    assert all(torch.equal(before[key], after[key]) for key in running)
    assert not torch.equal(before["conv_head.weight"], after["conv_head.weight"])
    wrong = ("finetune", "timm:resnet10t", "--data", data, "--weights", best, "--tile", "1xW", *small)
    assert_refused_after_scaling(tiledse(*wrong, "-o", tmp_path / "w"), "do not fit", "same name and shape")
    assert_refused(tiledse(*verb, "--tile", "1xQ", "-o", tmp_path / "w", *small), "1xQ")
    assert_refused(tiledse(*verb, "--tile", "1xW", "-o", tmp_path / "w", "--scale", "small"), "--recipe")


def assert_refused_after_scaling(done, *parts):
    lines = [line for line in done.err.splitlines() if not line.startswith("not the recipe's own size: ")]
    assert done.code == 2
    assert len(lines) == 1, done.err
    for part in parts:
        assert part in lines[0]


def test_schedules():
    """Rates of warm-up, cosine and poly by their formulas."""
    import math

    from tiledse.train.recipe import Recipe

    text = "epochs = 10\n[optimizer]\nlr = 0.8\n[schedule]\nname = '{}'\nwarmup_epochs = 2\nmin_factor = 0.01"
    for name, rate in (
        ("cosine", lambda t: 0.008 + 0.792 * (1 + math.cos(math.pi * t)) / 2),
        ("poly", lambda t: 0.008 + 0.792 * (1 - t) ** 0.9),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.8)
        schedule = make_schedule(optimizer, Recipe.parse(text.format(name)), 5)
        for step in range(50):
            schedule(step)
            expected = 0.08 + step * 0.72 / 10 if step < 10 else rate(step / 50)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6), (name, step)
