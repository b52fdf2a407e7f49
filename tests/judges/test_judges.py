"""The harness about the judges: tables that go on where they were, and one line for each way to fail."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.judges import __main__ as harness
from benchmarks.judges import environments, judge
from benchmarks.judges.networks import NETWORKS, opened
from benchmarks.judges.table import Table

from tiledse.errors import TiledSEError

KEY = ("net", "3x8x8", "7xW", "npu")


def test_a_table_goes_on_where_it_was(tmp_path: Path):
    table = Table(tmp_path / "t.csv")
    assert not table.there(KEY, "npu==1")
    table.add(KEY, {"cycles": 10}, "npu==1")
    table.add((*KEY[:2], "HxW", "npu"), {"error": 'no, "not" so'}, "npu==1")
    again = Table(tmp_path / "t.csv")
    assert again.there(KEY, "npu==1")
    assert not again.there(KEY, "npu==2")  # another version is asked again
    failed = (*KEY[:2], "HxW", "npu")
    assert again.there(failed, "npu==1")
    assert not again.there(failed, "npu==1", again=True)
    again.add(failed, {"cycles": 9, "groups": 3}, "npu==1")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(r["form"], r["cycles"], r["groups"], r["error"]) for r in rows]
    assert found == [("7xW", "10", "", ""), ("HxW", "9", "3", "")]
    assert list(rows[0])[-2:] == ["judge", "error"]
    table.add(
        (*KEY[:2], "8xW", "npu"), {"cycles": 8}, "npu==1"
    )  # it was opened before the row of another was added
    assert len(Table(tmp_path / "t.csv").rows) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_pins_say_exact_versions():
    for path in sorted((ROOT / "benchmarks" / "judges").glob("*.txt")):
        first = path.read_text().split()[0]
        assert "==" in first, path.name
    assert environments.version("tpu_mlir").startswith("tpu_mlir==")
    assert environments.version("ncnn").startswith("ncnn==")


@pytest.mark.parametrize("name", sorted(judge.JUDGES))
def test_each_judge_has_pins_and_a_script(name: str):
    assert environments.pins(name)
    assert (ROOT / "benchmarks" / "judges" / f"run_{name}.py").exists()
    for form in judge.JUDGES[name].forms:
        assert form in ("SE", "divisors") or "W" in form


def test_an_environment_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "environments")
    (tmp_path / "npu.txt").write_text("./no-such-package==1.0\n")
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(TiledSEError, match=r"^npu's environment cannot be made: .*no-such-package") as caught:
        environments.environment("npu", here)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "environments" / "npu" / "ready").exists()
    with pytest.raises(TiledSEError, match=r"this judge wants Python 9\.9: expected python9\.9 on PATH"):
        environments.environment("npu", "9.9")


def test_no_judge_meets_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join((ours, "/usr/bin")))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    given = environments.surroundings(tmp_path)
    assert given["PATH"].split(os.pathsep)[0] == str(tmp_path / "bin")
    assert ours not in given["PATH"].split(os.pathsep)
    assert "PYTHONPATH" not in given


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            "import sys\nprint('starting')\nsys.exit('Error: no such operator Foo')",
            "Error: no such operator Foo",
        ),
        ("raise ValueError('broken inside')", "ValueError: broken inside"),
        ("print('42 cycles')", "its last line is no JSON: 42 cycles"),
        ("pass", "it said nothing"),
    ],
)
def test_a_judge_that_fails_is_a_row(body: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge, "HERE", tmp_path)
    (tmp_path / "run_npu.py").write_text(body)
    assert judge.spoken(Path(sys.executable), "run_npu.py", tmp_path / "net.onnx") == {"error": error}
    (tmp_path / "run_npu.py").write_text("print('words'); print('{\"cycles\": 7}')")
    assert judge.spoken(Path(sys.executable), "run_npu.py", tmp_path / "net.onnx") == {"cycles": 7}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            ["openvino", "--network", "net.onnx", "--input", "3x8"],
            "such as 3x224x224, got '3x8'",
        ),
        (["openvino", "--network", "net.onnx", "--input", "3x8xb"], "expected --input CxHxW"),
        (["openvino", "--network", "net.onnx", "--input", "3x0x8"], "expected --input CxHxW"),
        (["openvino", "--network", "no-such.onnx"], "no-such.onnx"),
        (["openvino", "--network", "regnety-800mf-224", "--input", "3x8x8"], "has its size and weights"),
    ],
)
def test_wrong_use_is_one_line(given: list[str], line: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness, "environment", lambda *a: Path(sys.executable))
    monkeypatch.setattr(sys, "argv", ["judges", *given])
    with pytest.raises(SystemExit) as caught:
        harness.main()
    assert str(caught.value).startswith("judges: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_list_names_sizes():
    for name, known in NETWORKS.items():
        assert str(known.size[1]) in name.rpartition("-")[2]
    with pytest.raises(TiledSEError, match="leave --input and --weights out"):
        opened("mobilenetv3-small-224", (3, 8, 8), None)


def test_the_harness_starts_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.judges", "nobody", "--network", "x"], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "invalid choice: 'nobody'" in done.stderr
