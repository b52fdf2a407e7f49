"""Grey images of more than 8 bits are scaled by their type's range, the same for every way in, or refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tiledse.data.images import ListedImages
from tiledse.data.preprocessing import Preprocessing, read_image
from tiledse.errors import TiledSEError
from tiledse.stream.sources import ImageRows
from tiledse.train.masks import Masked
from tiledse.train.sources import Files

TAKE = Preprocessing((3, 4, 6), (0.0,) * 3, (1.0,) * 3, kind="crop")
RAMP = np.linspace(0, 1, 24).reshape(4, 6)
TYPES = {"u1": 255, "u2": 65535, "i2": 32767, "u4": 2**32 - 1, "i4": 2**31 - 1, "f4": 1}


def written(path, kind):
    values = RAMP * TYPES[kind]
    values = values.astype(kind) if kind == "f4" else np.floor(values).astype(np.uint64).astype(kind)
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        tifffile.imwrite(path, values, compression="zlib" if path.stem == "packed" else None)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "u1"),
        ("a.png", "u2"),
        *((n, k) for n in ("a.tif", "packed.tif") for k in TYPES),
        *(("a.npy", k) for k in TYPES),
    ],
)
def test_by_the_range_of_the_type(tmp_path, name, kind):
    path = written(tmp_path / name, kind)
    streamed = torch.cat(list(ImageRows(path).chunks(3)), 2)
    assert torch.allclose(
        streamed[0, 0].double(), torch.from_numpy(RAMP), atol=1 / 255 if kind == "u1" else 1e-4
    )
    if path.suffix != ".npy":
        read = read_image(path, name, TAKE)
        assert torch.allclose(read.double(), torch.from_numpy(RAMP).expand(3, 4, 6), atol=1.01 / 255)
        trained = Files(ListedImages(tmp_path, [(name, 0)], TAKE)).read(0)
        assert np.abs(np.asarray(trained)[:, :, 0] / 255 - RAMP).max() < 1.01 / 255


@pytest.mark.parametrize("name", ["a.tif", "packed.tif", "a.npy"])
@pytest.mark.parametrize(("values", "message"), [
    (np.array([[0, 2.5]], "f4"), "from 0 to 2.5; expected 0 to 1"),
    (np.array([[0, np.nan]], "f4"), "expected 0 to 1"),
    (np.array([[0, -3]], "i2"), "it holds -3"),
])  # fmt: skip
def test_beyond_the_range(tmp_path, name, values, message):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        tifffile.imwrite(path, values, compression="zlib" if path.stem == "packed" else None)
        with pytest.raises(TiledSEError, match=message):
            read_image(path, name, TAKE)
    with pytest.raises(TiledSEError, match=message):
        list(ImageRows(path, mean=(0.5,)).chunks(1))


def test_a_mask_of_16_bits_keeps_its_classes(tmp_path):
    Image.fromarray(np.array([[0, 3, 700]], np.uint16)).save(tmp_path / "m.png")
    read = read_image(
        tmp_path / "m.png", "m", lambda mask: torch.tensor(np.array(mask).astype(int)), scaled=False
    )
    assert read.tolist() == [[0, 3, 700]]


def test_headers_that_lie(tmp_path, capfd):
    whole = tmp_path / "a.npy"
    np.save(whole, np.zeros((4, 6), "u1"))
    whole.write_bytes(whole.read_bytes().replace(b"(4, 6)", b"(99999999999, 6)")[:140])
    with pytest.raises(TiledSEError, match="cut off|cannot read"):
        ImageRows(whole)
    for name, options in {"flat.tif": {}, "packed.tif": {"compression": "zlib", "rowsperstrip": 2}}.items():
        path = tmp_path / name
        tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), **options)
        good = path.read_bytes()
        with tifffile.TiffFile(path) as tiff:
            tags = {k: tiff.pages[0].tags[k].valueoffset for k in ("ImageLength", "RowsPerStrip")}
        for tag, value in (("ImageLength", 2**31 - 1), ("ImageLength", 0), ("RowsPerStrip", 0)):
            lying = bytearray(good)
            lying[tags[tag] : tags[tag] + 4] = value.to_bytes(4, "little")
            path.write_bytes(lying)
            if (name, tag) != ("flat.tif", "RowsPerStrip"):
                with pytest.raises(TiledSEError):
                    list(ImageRows(path).chunks(8))
        for cut in (8, 40, len(good) // 2, len(good) - 9):
            path.write_bytes(good[:cut])
            with pytest.raises(TiledSEError):
                list(ImageRows(path).chunks(8))
        if options:
            torn = bytearray(good)
            torn[300:900] = bytes(600)
            path.write_bytes(torn)
            with pytest.raises(TiledSEError):
                list(ImageRows(path).chunks(8))
    assert capfd.readouterr().err == ""


def a_png(side: int, data: bytes = b"", colour: int = 2) -> bytes:
    """A PNG whose header says side x side pixels; ``data`` are its compressed rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def a_bmp(side: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + b"\0" * 100_000


LIES = {
    "a.png": a_png(12000, zlib.compress(b"\0" * 1000)),
    "grey.png": a_png(13000, zlib.compress(b"\0" * 1000), 0),
    "a.ppm": b"P6 12000 12000 255\n" + b"\0" * 300_000,
    "a.bmp": a_bmp(12000),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_about_the_size(tmp_path, monkeypatch, name):
    """Said before memory is asked for, by every way in."""
    path = tmp_path / name
    path.write_bytes(LIES[name])

    def never(*_):
        raise AssertionError("memory was asked for")

    monkeypatch.setattr(Image.core, "new", never)
    message = rf"it says that it holds 1[23]000 x 1[23]000 pixels .* its {len(LIES[name])} bytes cannot"
    with pytest.raises(TiledSEError, match=f"image a: {message}"):
        read_image(path, "a", TAKE)
    with pytest.raises(TiledSEError, match=f"image a: {message}"):
        read_image(io.BytesIO(LIES[name]), "a", TAKE, scaled=False)
    with pytest.raises(TiledSEError, match=f"image {path}: {message}"):
        ImageRows(path)
    with pytest.raises(TiledSEError, match=f"image {name}: {message}"):
        Files(ListedImages(tmp_path, [(name, 0)], TAKE)).read(0)
    Image.init()
    with pytest.raises(TiledSEError, match=f"or its mask {path}: {message}"):
        Masked(((path, path),), 3).read(0)


def test_more_than_pillow_decodes(tmp_path):
    """A bomb: 400 million pixels that a sound file of 1.2 MB holds."""
    data = a_png(20000, zlib.compress(b"\0" * 10) + b"\0" * 1_200_000)
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(TiledSEError, match=r"cannot be read: Image size \(400000000 pixels\) exceeds limit"):
        read_image(tmp_path / "bomb.png", "bomb.png", TAKE)
    with pytest.raises(TiledSEError, match=r"cannot read image .*: DecompressionBombError"):
        ImageRows(tmp_path / "bomb.png")
    with pytest.raises(TiledSEError, match=r"cannot read .*bomb.png or its mask: Image size"):
        Masked(((tmp_path / "bomb.png",) * 2,), 3).read(0)


def test_what_compresses_well_is_read(tmp_path):
    """One colour all over, as far as deflate goes: a sound file of 9000 x 9000 pixels in 80 kB."""
    Image.new("L", (9000, 9000), 128).save(tmp_path / "flat.png")
    assert (tmp_path / "flat.png").stat().st_size < 100_000
    x = read_image(tmp_path / "flat.png", "flat.png", TAKE)
    assert torch.equal(x, torch.full((3, 4, 6), 128 / 255))
