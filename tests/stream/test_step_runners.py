"""Runners of steps in other languages: C++ and JavaScript give what Python gives, and go on from its states."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import tiledse as ts
from tests.stream.test_step_files import WIDTH, Net, image
from tiledse.stream.step import header, saved
from tiledse.stream.step.runner import header_of

ROOT = Path(__file__).parents[2]
STEP = ROOT / "examples" / "step"
HEIGHT = 61


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A step of a map and logits; its file, an image, and what Python makes of it."""
    torch.manual_seed(0)
    model = Net().eval()
    plan = ts.find(model, (3, 31, WIDTH)).with_tile("3xW:running+1")
    path = tmp_path_factory.mktemp("runners") / "step.onnx"
    ts.export_step(model, plan, path, rows=12)
    x = image(HEIGHT)
    np.save(path.with_name("image.npy"), x)
    return path, x, ts.StepRunner(path, HEIGHT)(x)


def goes_on(path, x, whole, before, state, rows):
    """Python goes on from a state of another language."""
    runner = ts.StepRunner(path, HEIGHT)
    runner.load(state)
    assert runner.seen == rows
    rest = runner.push(x[:, :, rows:])
    parts = [part for part in (before, rest["map"]) if part is not None]
    np.testing.assert_allclose(np.concatenate(parts, 2), whole["map"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(rest["logits"], whole["logits"], rtol=0, atol=1e-5)


def state_after(path, x, rows):
    """A state after some rows, and what comes after them."""
    runner, state = ts.StepRunner(path, HEIGHT), path.with_name("state.safetensors")
    if rows:
        runner.push(x[:, :, :rows])
    runner.save(state)
    return state, runner.push(x[:, :, rows:])


# C++


def headers() -> Path | None:
    """Where ONNX Runtime's headers are; Python's wheel has the library alone."""
    told = os.environ.get("TILEDSE_ONNXRUNTIME_HEADERS")
    for place in filter(None, (told, "/usr/include/onnxruntime", "/usr/local/include/onnxruntime")):
        found = next(Path(place).rglob("onnxruntime_c_api.h"), None)
        if found is not None:
            return found.parent
    return None


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The runner in C++, built against the library of Python's ONNX Runtime."""
    import onnxruntime

    compiler, include = shutil.which("g++") or shutil.which("clang++"), headers()
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if compiler is None or include is None or library is None:
        pytest.skip(
            "needs a C++ compiler, onnxruntime_c_api.h (TILEDSE_ONNXRUNTIME_HEADERS) and libonnxruntime.so"
        )
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{include}", str(STEP / "step_runner.cpp"),
         "-o", str(folder / "run"), f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}"], check=True,
    )  # fmt: skip
    return folder / "run"


def run_cpp(program, path, *more):
    out = path.with_name("cpp")
    for file in out.parent.glob("cpp.*.npy"):
        file.unlink()
    made = subprocess.run(
        [program, path, path.with_name("image.npy"), out, *more], capture_output=True, text=True, check=False
    )
    return made, {name: out.with_name(f"cpp.{name}.npy") for name in ("map", "logits")}


def test_cpp_gives_the_rows_of_python(program, small):
    path, _, expected = small
    made, files = run_cpp(program, path)
    assert (made.returncode, made.stderr) == (0, "")
    for name, file in files.items():
        np.testing.assert_allclose(np.load(file), expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 7, 29, 55])
def test_cpp_goes_on_from_a_state_of_python(program, small, rows):
    path, x, _ = small
    state, expected = state_after(path, x, rows)
    made, files = run_cpp(program, path, state)
    assert (made.returncode, made.stderr) == (0, "")
    for name, file in files.items():
        np.testing.assert_allclose(np.load(file), expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 29, 55])
def test_python_goes_on_from_a_state_of_cpp(program, small, tmp_path, rows):
    path, x, whole = small
    made, files = run_cpp(program, path, "--until", str(rows), tmp_path / "state.safetensors")
    assert (made.returncode, made.stderr) == (0, "")
    before = np.load(files["map"]) if files["map"].exists() else None
    goes_on(path, x, whole, before, tmp_path / "state.safetensors", rows)
    # C++ writes what Python writes: the same numbers, and the same checksum.
    theirs = safetensors.numpy.load_file(tmp_path / "state.safetensors")
    ours = safetensors.numpy.load_file(state_after(path, x, rows)[0])
    assert set(theirs) == set(ours)
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=0, atol=1e-6)


def test_cpp_refuses_in_one_line(program, small, tmp_path):
    path, x, _ = small
    state_after(path, x, 7)
    for name in ("step.onnx", "image.npy", "state.safetensors"):
        shutil.copy(path.with_name(name), tmp_path)
    data = (tmp_path / "state.safetensors").read_bytes()
    identity = header_of(path).identity.encode()
    (tmp_path / "state.safetensors").write_bytes(data.replace(identity, b"0" * len(identity)))
    (tmp_path / "changed.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for arguments, message in (
        (["nowhere.onnx", "image.npy", "out"], "cannot read nowhere.onnx"),
        (["image.npy", "image.npy", "out"], "image.npy"),
        (["step.onnx", "step.onnx", "out"], "is no .npy file"),
        (["step.onnx", "image.npy", "out", "state.safetensors"], "the state is of another step"),
        (["step.onnx", "image.npy", "out", "changed.safetensors"], "was changed after it was written"),
        (["step.onnx", "image.npy", "out", "--until", "62", "s"], "expected a row from 0 to 61, got 62"),
        (["step.onnx", "image.npy", "out", "--until", "x", "s"], "expected a row from 1 on, got x"),
        (["step.onnx", "image.npy", "out", "--until", "9", "nowhere/s"], "cannot write nowhere/s"),
        (["step.onnx"], "usage"),
    ):
        made = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert made.returncode == 2
        assert message in made.stderr
        assert made.stderr.startswith("step_runner: ")
        assert made.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


# JavaScript


@pytest.fixture(scope="module")
def web() -> Path:
    """onnxruntime-web, where `make step-page` has put it."""
    place = Path(os.environ.get("TILEDSE_ONNXRUNTIME_WEB", STEP / "node_modules" / "onnxruntime-web"))
    if not (place / "dist" / "ort.wasm.min.mjs").is_file():
        pytest.skip("no onnxruntime-web: make step-page, or TILEDSE_ONNXRUNTIME_WEB")
    return place


SCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
const [web, runner, folder, rows, until, state] = process.argv.slice(2);
const ort = await import(web);
const { StepRunner, headerOf } = await import(runner);
ort.env.wasm.numThreads = 1;
const bytes = (name) => new Uint8Array(readFileSync(`${folder}/${name}`));
const file = bytes("image.npy");
const header = headerOf(bytes("step.onnx"));
const numbers = new Float32Array(file.slice(file.length - 4 * header.channels * header.width * rows).buffer);
const options = { middle: bytes("step.middle.onnx"), height: Number(rows) };
const open = () => StepRunner.open(ort, bytes("step.onnx"), options);
const made = await open();
if (state) await made.load(bytes(state));
const found = {};
while (made.seen < until) {
  const count = Math.min(5, until - made.seen);
  const part = new Float32Array(header.channels * count * header.width);
  for (let plane = 0; plane < header.channels; plane++) {
    const from = (plane * rows + made.seen) * header.width;
    part.set(numbers.subarray(from, from + count * header.width), plane * count * header.width);
  }
  for (const [name, got] of Object.entries(await made.push(part, count))) {
    if (got) (found[name] ??= []).push({ dims: got.dims, data: [...got.data] });
  }
}
if (until < rows) {
  writeFileSync(`${folder}/js.safetensors`, await made.save());
  console.log(JSON.stringify({ found }));
  process.exit(0);
}
const refused = [];
const attempt = async (act) => {
  try { await act(); refused.push("-"); } catch (error) { refused.push(error.message); }
};
await attempt(() => made.push(new Float32Array(3 * header.width), 1));
const other = await open();
await attempt(() => other.push(new Float32Array(5), 1));
await attempt(() => other.finish());
const changed = await other.save();
changed[changed.length - 1] ^= 1;
await attempt(() => other.load(changed));
await attempt(() => headerOf(bytes("image.npy")));
await attempt(() => headerOf(bytes("step.onnx").subarray(0, 400)));
console.log(JSON.stringify({ found, refused }));
"""


def run_javascript(web, path, folder, until=HEIGHT, *state):
    if shutil.which("node") is None:
        pytest.skip("no node")
    (folder / "run.mjs").write_text(SCRIPT)
    out = subprocess.run(
        ["node", folder / "run.mjs", web / "dist" / "ort.node.min.mjs", STEP / "step_runner.js", path.parent,
         str(HEIGHT), str(until), *state], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    made = json.loads(out)
    found = {}
    for name, axis in (("map", 2), ("logits", 0)):
        parts = [
            np.array(part["data"], np.float32).reshape(part["dims"]) for part in made["found"].get(name, [])
        ]
        found[name] = np.concatenate(parts, axis) if parts else None
    return found, made.get("refused")


@pytest.mark.parametrize("rows", [0, 29])
def test_javascript_gives_the_rows_of_python(web, small, tmp_path, rows):
    path, x, whole = small
    state, rest = state_after(path, x, rows)
    found, refused = run_javascript(web, path, tmp_path, HEIGHT, *([state.name] if rows else []))
    for name, expected in (rest if rows else whole).items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)
    words = "the image has 61", "expected 3 x 1 x 12", "before its first row", "was changed", "no ", "cut off"
    for message, expected_words in zip(refused, words, strict=True):
        assert expected_words in message


def test_python_goes_on_from_a_state_of_javascript(web, small, tmp_path):
    path, x, whole = small
    before, _ = run_javascript(web, path, tmp_path, 29)
    goes_on(path, x, whole, before["map"], path.with_name("js.safetensors"), 29)


# The page


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="`make step-page` installs it")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_):
        pass


@pytest.fixture
def served(small, web, tmp_path):
    """The page with a step and a tall image beside it; where it is served."""
    for file in (*STEP.glob("*.html"), *STEP.glob("*.js"), *small[0].parent.glob("*.onnx")):
        shutil.copy(file, tmp_path)
    (tmp_path / "ort").symlink_to(web / "dist")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}/page.html"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_page_streams_a_tall_image_in_bounded_memory(small, browser, served):
    folder, address = served
    tall = 6001
    pixels = np.random.default_rng(0).integers(0, 256, (tall, WIDTH, 3), np.uint8)
    np.save(folder / "tall.npy", pixels)
    page, errors = browser.new_page(viewport={"width": 800, "height": 900}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}?ort=ort/&step=step.onnx&middle=step.middle.onnx&image=tall.npy&mean=0.5&std=0.25")
    page.wait_for_function("window.streamed !== undefined", timeout=120_000)
    made = page.evaluate("window.streamed")
    assert errors == []
    x = (pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255 - 0.5) / 0.25
    expected = ts.StepRunner(small[0], tall)(np.ascontiguousarray(x))
    assert made["outputs"]["map"]["rows"] == expected["map"].shape[2]
    scale = float(np.abs(expected["map"]).sum())
    assert abs(made["outputs"]["map"]["sum"] - float(expected["map"].astype(np.float64).sum())) < 1e-5 * scale
    np.testing.assert_allclose(made["outputs"]["logits"]["data"], expected["logits"][0], rtol=0, atol=1e-4)
    heap = dict(made["points"])
    assert heap[tall] > 0
    assert heap[tall] == heap[600]  # after a tenth of the image nothing grows
    assert page.locator("#rows").text_content() == f"{tall} of {tall}"
    assert "MB" in page.locator("#heap").text_content()
    page.screenshot(path=os.environ.get("TILEDSE_SCREENSHOT", str(folder / "page.png")))
    # What is wrong is said on the page.
    np.save(folder / "narrow.npy", pixels[:, 1:])
    page.goto(f"{address}?ort=ort/&step=step.onnx&image=narrow.npy")
    page.wait_for_function("window.streamed !== undefined")
    assert "11 columns" in page.locator("#error").text_content()
    page.close()


def test_the_header_is_where_other_languages_look():
    """The keys of the metadata and the formats that the runners expect."""
    for name in ("step_runner.js", "step_runner.cpp"):
        text = (STEP / name).read_text()
        for word in (header.KEY, header.FORMAT, saved.KEY, saved.FORMAT):
            assert f'"{word}"' in text
