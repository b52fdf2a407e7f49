"""docs/json.md is true: what each verb prints with --json has the keys and types that stand there, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.running import tiledse
from tests.conftest import ROOT
from tiledse.cli.verbs import VERBS

PAGE = (ROOT / "docs" / "json.md").read_text("utf-8")
TYPES = {"int": int, "str": str, "bool": bool, "float": (int, float), "list": list, "object": dict}
SMALL = ("timm:lcnet_050", "--input", "3x64x64")
IMAGES = ("--data", "images", "--batch-size", "20")


def tables() -> dict[str, dict[str, tuple[str, bool]]]:
    """By verb and key: its type, and whether it is always there."""
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        verb, _, text = section.partition("\n")
        rows = re.findall(r"^\| (\*?)`([\w.\[\]{}]+)`\*? \| (\w+\??) \|", text, re.M)
        found[verb] = {key: (kind, not italic) for italic, key, kind in rows}
    return found


TABLES = tables()


def paths(value: Any, path: str, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each figure of an object under the key that the page has for it."""
    if path.endswith("{}") or (path in known and not isinstance(value, (dict, list))):
        yield path, value
        return
    if f"{path}{{}}" in known:
        inner = list(value.values()) if isinstance(value, dict) else [value]
        yield from ((f"{path}{{}}", one) for one in inner or [...])
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from paths(one, f"{path}.{key}" if path else key, known)
    elif isinstance(value, list):
        if not value:
            yield f"{path}[]", ...
        for one in value:
            yield from paths(one, f"{path}[]", known)
    else:
        yield path, value


def check(verb: str, printed: dict[str, Any]) -> None:
    known = TABLES[verb]
    seen = set()
    for path, value in paths(printed, "", known):
        start = path.removesuffix("[]")  # an empty list, or null, stands for all keys that it could have had
        fits = [key for key in known if key == path or (value in (..., None) and key.startswith(start))]
        assert fits, f"{verb}: '{path}' is not in docs/json.md"
        seen.update(fits)
        if value is ...:
            continue
        kind, may_be_null = known[fits[0]][0].removesuffix("?"), known[fits[0]][0].endswith("?")
        if kind == "any" or (value is None and (may_be_null or fits != [path])):
            continue
        assert isinstance(value, TYPES[kind]), f"{verb}: {path} is {value!r}, and not {kind}"
        assert kind == "bool" or not isinstance(value, bool), f"{verb}: {path} is a bool"
    absent = {key for key, (_, always) in known.items() if always} - seen
    assert not absent, f"{verb}: docs/json.md has keys that are not printed: {sorted(absent)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    (folder / "images").mkdir()
    rows = ["file,label"]
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (72, 72, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,{number}")
    (folder / "images" / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


QUICK = {
    "find": ("find", *SMALL),
    "plan": ("plan", *SMALL, "--tile", "1xW", "-o", "plan.json", "--force"),
    "cost": ("cost", *SMALL, "--tile", "1xW"),
    "convert": ("convert", *SMALL, "--tile", "1xW", "-o", "tse.safetensors", "--force"),
    "eval": ("eval", *SMALL, "--tile", "1xW", *IMAGES),
    "correlate": ("correlate", *SMALL, "--tile", "1xW", *IMAGES),
    "sensitivity": ("sensitivity", *SMALL, "--tiles", "1xW", *IMAGES),
    "advise": ("advise", *SMALL, "--target", "ethos-u"),
    "stream": ("stream", *SMALL, "--tile", "1xW"),
    "simulate": ("simulate", *SMALL, "--tile", "1xW"),
    "zoo": ("zoo",),
}
SLOW = {
    "convert": ("convert", *SMALL, "--tile", "1xW", "-o", "tse.onnx", "--force"),
    "sweep": ("sweep", *SMALL, "--tiles", "1xW", *IMAGES, "-o", "sweep.csv"),
    "calibrate": ("calibrate", *SMALL, "--tile", "1xW", *IMAGES, "-o", "fitted.json"),
    "search": ("search", *SMALL, "--max-buffer", "1000", *IMAGES, "-o", "found.json", "--tiles", "1xW"),
    "report": ("report", *SMALL, *IMAGES, "-o", "report.html"),
    "paper": ("paper", "1"),
    "bench": ("bench", "--only", "operator", "--shapes", "1", "--repeats", "2", "--tiles", "7xW"),
    "demo": ("demo", "--folder", "demo"),
}


def test_every_verb_is_on_the_page():
    assert {name.partition(" ")[0] for name in TABLES} == {*VERBS}
    assert len(re.findall(r"^## ", PAGE, re.M)) == len(TABLES), "a verb stands there twice"
    assert {*QUICK, *SLOW, "train", "finetune"} >= {*VERBS}


@pytest.mark.parametrize("verb", QUICK)
def test_keys_are_those_of_the_page(verb, folder, monkeypatch):
    monkeypatch.chdir(folder)
    done = tiledse(*QUICK[verb], "--json")
    assert done.code == 0, done.err
    check(verb, json.loads(done.out))


@pytest.mark.slow
@pytest.mark.parametrize("verb", SLOW)
def test_keys_are_those_of_the_page_slowly(verb, folder, monkeypatch):
    if verb == "demo":
        pytest.importorskip("rapidocr")
    monkeypatch.chdir(folder)
    done = tiledse(*SLOW[verb], "--json")
    assert done.code == 0, done.err
    check(verb, json.loads(done.out))


def test_what_is_not_on_the_page_is_told():
    with pytest.raises(AssertionError, match="'model2' is not in"):
        check("find", {"model2": "x"})
    with pytest.raises(AssertionError, match="and not int"):
        check("find", {"input": ["3"]})
    with pytest.raises(AssertionError, match="keys that are not printed: .*'model'"):
        check("find", {"input": [3]})
