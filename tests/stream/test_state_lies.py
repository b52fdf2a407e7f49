"""A state file that lies: refused by what is wrong, and the stream is as it was."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import tiledse as ts
from tests.stream.networks import Small
from tiledse.errors import TiledSEError
from tiledse.stream.state import _digest

SIZE = (29, 19)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A stream, an image, and the header and tensors of a state after ten rows."""
    torch.manual_seed(0)
    model = Small().eval()
    stream = ts.stream(model, ts.find(model, (3, *SIZE)).with_tile("2xW:running"), rows=8)
    image = torch.randn(1, 3, *SIZE)
    stream.push(image[:, :, :10])
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    stream.save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
        return stream, image, json.loads(file.metadata()["tiledse.stream"]), tensors


def first(header, name):
    return next(iter(header[name]))


def stretched(header, tensors):
    name = next(key for key in tensors if key.startswith("rows."))
    tensors[name] = torch.cat([tensors[name]] * 2, 2)


def infinite(header, tensors):
    next(tensor for key, tensor in tensors.items() if key.startswith("state."))[...] = torch.inf


def renamed(header, tensors):
    tensors["rows.999"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda h, t: h["produced"].__setitem__(0, 30), "made 30 rows, but it has 29"),
        (lambda h, t: h["produced"].__setitem__(0, 4), "cannot have made these counts of rows"),
        (lambda h, t: h["produced"].__setitem__(0, -1), "rows made to be a whole number from 0"),
        (lambda h, t: h["produced"].__setitem__(1, "9"), "rows made to be a whole number"),
        (lambda h, t: h["produced"].pop(), "expected produced to be"),
        (lambda h, t: h["taken"].__setitem__(first(h, "taken"), 3), "cannot have taken in"),
        (lambda h, t: h["starts"].__setitem__(first(h, "starts"), 10**9), "the first row held"),
        (lambda h, t: h["starts"].pop(first(h, "starts")), "still needed are missing|has no place"),
        (lambda h, t: h["states"].__setitem__(first(h, "states"), [1]), "running sum of .* cannot be"),
        (lambda h, t: h["states"].pop(first(h, "states")), "running sum of .* is missing"),
        (lambda h, t: h.__setitem__("states", []), "expected states to be a table"),
        (lambda h, t: t.pop(next(iter(t))), "is missing"),
        (stretched, r"expected \[1, "),
        (infinite, "not finite"),
        (renamed, "'rows.999' is missing, or has no place"),
    ],
)
def test_lies(saved, tmp_path, lie, message):
    stream, _, header, tensors = saved
    told, lied = json.loads(json.dumps(header)), {key: tensor.clone() for key, tensor in tensors.items()}
    lie(told, lied)
    for signed, expected in ((True, message), (False, "it was changed after it was written")):
        told["sha256"] = _digest(told, lied) if signed else header["sha256"]
        save_file(lied, tmp_path / "state.safetensors", {"tiledse.stream": json.dumps(told)})
        before = stream.seen
        with pytest.raises(TiledSEError, match=rf"state.safetensors is damaged: .*({expected})"):
            stream.load(tmp_path / "state.safetensors")
        assert stream.seen == before


def test_the_truth_is_taken(saved, tmp_path):
    stream, image, header, tensors = saved
    save_file(tensors, tmp_path / "state.safetensors", {"tiledse.stream": json.dumps(header)})
    stream.load(tmp_path / "state.safetensors")
    assert stream.seen == 10
    stream.push(image[:, :, 10:])
