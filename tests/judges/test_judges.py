"""The harness about the judges: tables that go on where they were, and one line for each way to fail."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from tests.tflite.graphs import quantised

sys.path.insert(0, str(ROOT))

from benchmarks.judges import __main__ as harness
from benchmarks.judges import environments, exported, exported_mobile, judge
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
        (["openvino", "--network", "timm:nobody", "--input", "3x64x64"], "nobody"),
        (["openvino", "--network", "mobilenetv3-small-225"], "mobilenetv3-small-225"),
        (["openvino", "--network", "regnety-800mf-224", "--input", "3x8x8"], "has its size and weights"),
    ],
)
def test_wrong_use_is_one_line(
    given: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stopped(harness, given, line, monkeypatch, capsys)


def stopped(
    script: ModuleType, given: list[str], line: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Run a script that is to end in one line and code 2, before it makes an environment."""

    def made(*_: object) -> Path:
        raise AssertionError("an environment was made")

    monkeypatch.setattr(script, "environment", made)
    monkeypatch.setattr(sys, "argv", ["judges", *given])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("judges: ")
    assert line in said
    assert said.count("\n") == 1


SMALL = ["--network", "benchmarks.judges.sern:network", "--input", "3x56x56"]


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("7xQ", "expected each of --forms to be SE, divisors or a tile, got '7xQ'"),
        ("se", "expected each of --forms to be SE, divisors or a tile, got 'se'"),
        ("8xT", "got '8xT'"),
    ],
)
def test_unknown_forms_are_refused_first(
    form: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    stopped(harness, ["stream", *SMALL, "--forms", "SE", form], line, monkeypatch, capsys)


def test_no_judge_is_given_a_file_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "net.tflite").write_bytes(quantised().bytes())
    given = ["--network", str(tmp_path / "net.tflite")]
    stopped(harness, ["rknn", *given], "rknn takes files that end in .onnx, got", monkeypatch, capsys)
    line = "'divisors' is a form of .onnx files"
    stopped(harness, ["vela", *given, "--forms", "divisors"], line, monkeypatch, capsys)
    line = "expected a MODEL of PyTorch to export, such as timm:NAME, got"
    file = [*given, "--input", "6x12x5"]
    stopped(exported, file, line, monkeypatch, capsys)
    stopped(exported_mobile, ["litert_torch", *file], line, monkeypatch, capsys)


@pytest.mark.parametrize("script", [exported, exported_mobile])
def test_wrong_use_of_the_scripts_for_modules(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    way = ["litert_torch"] if script is exported_mobile else []
    given = [*way, "--network", "timm:nobody", "--input", "3x64x64"]
    stopped(script, given, "nobody", monkeypatch, capsys)
    given = [*way, "--network", "benchmarks.judges.sern:network", "--input", "3x64"]
    stopped(script, given, "expected --input CxHxW, such as 3x224x224, got '3x64'", monkeypatch, capsys)


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
