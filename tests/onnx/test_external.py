"""Weights in a file beside the network: where they may lie, and weights that are no numbers."""

from __future__ import annotations

import os

import numpy as np
import pytest

import onnx
from onnx import numpy_helper
from tests.cli.running import assert_refused, tiledse
from tiledse.errors import TiledSEError
from tiledse.onnx import convert, find, load, save, verify

from .graphs import se_net


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    onnx.save(se_net(), folder / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "net.onnx"


def moved(file, location):
    """The same network, which says that its weights are elsewhere."""
    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    file.write_bytes(proto.SerializeToString())


def test_as_if_the_weights_were_in_it(file, tmp_path):
    whole = tmp_path / "whole.onnx"
    onnx.save(se_net(), whole)
    model, other = load(file), load(whole)
    assert model.data_files == (file.parent / "w.bin",)
    assert find(model) == find(other)
    plan = find(model).with_tile("3xW")
    tiled = convert(model, plan)
    assert verify(other, tiled, plan).worst_block < 1e-6
    save(tiled, tmp_path / "out.onnx")
    assert load(tmp_path / "out.onnx").data_files == ()


def test_several_hard_links_are_fine(file):
    os.link(file.parent / "w.bin", file.parent / "again.bin")
    assert len(find(load(file))) == 1
    assert tiledse("cost", file, "--tile", "3xW").code == 0


def test_a_folder_below(file):
    (file.parent / "data").mkdir()
    (file.parent / "w.bin").rename(file.parent / "data" / "w.bin")
    moved(file, "data/w.bin")
    assert len(find(load(file))) == 1


@pytest.mark.parametrize("location", ["../w.bin", "../net/w.bin", "a/../w.bin", "ABSOLUTE", "C:\\w.bin", ""])
def test_weights_elsewhere(file, location):
    (file.parent.parent / "w.bin").write_bytes((file.parent / "w.bin").read_bytes())
    moved(file, str(file.parent / "w.bin") if location == "ABSOLUTE" else location)
    for verb in (
        ["find"],
        ["cost", "--tile", "3xW"],
        ["convert", "--tile", "3xW", "-o", file.parent / "o.onnx"],
    ):
        assert_refused(tiledse(verb[0], file, *verb[1:]), "not in its own folder")


def test_weights_by_a_symbolic_link(file):
    real = file.parent.parent / "real"
    real.mkdir()
    (file.parent / "w.bin").rename(real / "w.bin")
    (file.parent / "w.bin").symlink_to(real / "w.bin")
    assert_refused(tiledse("find", file), "symbolic link that leads elsewhere", "cp -L net.onnx w.bin FOLDER")
    (file.parent / "w.bin").unlink()
    (file.parent / "d").symlink_to(real)
    moved(file, "d/w.bin")
    assert_refused(tiledse("find", file), "symbolic link that leads elsewhere")


def cached(file, data="blobs"):
    """The files as Hugging Face's cache keeps them: ``snapshots/REVISION/onnx/NAME`` are links into ``blobs``."""
    root = file.parent.parent / "models--a--net"
    snapshot = root / "snapshots" / "0123abcd" / "onnx"
    for folder in (snapshot, root / "blobs", root / data):
        folder.mkdir(parents=True, exist_ok=True)
    file.rename(root / "blobs" / "5f1c")
    (file.parent / "w.bin").rename(root / data / "9e07")
    (snapshot / "net.onnx").symlink_to("../../../blobs/5f1c")
    (snapshot / "w.bin").symlink_to(f"../../../{data}/9e07")
    return snapshot / "net.onnx"


def test_in_a_cache_whose_files_are_links(file, tmp_path):
    whole = tmp_path / "whole.onnx"
    onnx.save(se_net(), whole)
    linked = cached(file)
    model = load(linked)
    assert find(model) == find(load(whole))
    assert verify(load(whole), convert(model, find(model).with_tile("3xW")), find(model).with_tile("3xW"))
    # The blobs are read, so they are not written over, under either name.
    for name in (linked, linked.resolve(), linked.parent / "w.bin", (linked.parent / "w.bin").resolve()):
        before = name.read_bytes()
        done = tiledse(
            "convert", linked, "--tile", "3xW", "--force", "-o", tmp_path / "o.onnx", "--alls", name
        )
        assert_refused(done, "would replace what is read")
        assert name.read_bytes() == before


def test_a_link_within_the_folder(file):
    (file.parent / "w.bin").rename(file.parent / "v2.bin")
    (file.parent / "w.bin").symlink_to("v2.bin")
    assert len(find(load(file))) == 1


def test_links_that_lead_elsewhere(file):
    """Weights outside of the folder that the network lies in, behind all links."""
    linked = cached(file, data="other")
    assert_refused(tiledse("find", linked), "symbolic link that leads elsewhere", "cp -L")
    # The network itself beside the links: then they lead elsewhere too.
    blob = linked.resolve()
    linked.unlink()
    linked.write_bytes(blob.read_bytes())
    assert_refused(tiledse("find", linked), "symbolic link that leads elsewhere")


@pytest.mark.parametrize("target", ["nowhere", "w.bin"])
def test_links_that_lead_nowhere(file, target):
    (file.parent / "w.bin").unlink()
    (file.parent / "w.bin").symlink_to(target)
    assert_refused(tiledse("find", file), "symbolic link that leads elsewhere")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "99999999999", "was cut off"),
        ("offset", "-8", "no valid ONNX|the file says 648 from -8 on"),
        ("length", "3", "file says 3"),
        ("offset", "many", "no valid ONNX"),
        ("offset", "9" * 5000, "no valid ONNX"),
    ],
)
def test_places_that_lie(file, key, value, message):
    proto = onnx.load(file, load_external_data=False)
    entries = {entry.key: entry for entry in proto.graph.initializer[0].external_data}
    entries[key].value = value
    file.write_bytes(proto.SerializeToString())
    done = tiledse("find", file)
    # Older onnx leaves it to us to say so.
    assert_refused(done, next((part for part in message.split("|") if part in done.err), message))


def test_a_shape_that_lies(file):
    proto = onnx.load(file, load_external_data=False)
    proto.graph.initializer[0].dims[0] = 2**60
    file.write_bytes(proto.SerializeToString())
    assert tiledse("find", file).code == 2


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path, external, value):
    proto = se_net()
    at = next(i for i, t in enumerate(proto.graph.initializer) if len(t.dims) == 4)
    array = numpy_helper.to_array(proto.graph.initializer[at]).copy()
    array.flat[0] = value
    name = proto.graph.initializer[at].name
    proto.graph.initializer[at].CopyFrom(numpy_helper.from_array(array, name))
    path = tmp_path / "net.onnx"
    onnx.save(proto, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    for verb in (["find"], ["convert", "--tile", "3xW", "-o", tmp_path / "o.onnx"]):
        assert_refused(tiledse(verb[0], path, *verb[1:], "--json"), f"weight '{name}'", "not finite")


def test_an_infinity_that_is_meant_stays(tmp_path):
    proto = se_net()
    proto.graph.initializer.append(numpy_helper.from_array(np.array(np.inf, np.float32), "high"))
    proto.graph.node.append(onnx.helper.make_node("Min", [proto.graph.output[0].name, "high"], ["clipped"]))
    proto.graph.output[0].name = "clipped"
    onnx.save(proto, tmp_path / "net.onnx")
    assert len(find(load(tmp_path / "net.onnx"))) == 1


def test_the_file_beside_is_not_replaced_without_force(file, monkeypatch):
    monkeypatch.setattr("tiledse.onnx.model._LARGEST_MESSAGE", 100)
    model = load(file)
    (file.parent / "new.onnx.data").write_text("precious")
    with pytest.raises(TiledSEError, match=r"new\.onnx\.data exists"):
        save(model, file.parent / "new.onnx")
    assert (file.parent / "new.onnx.data").read_text() == "precious"
