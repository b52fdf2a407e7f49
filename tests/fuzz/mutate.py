"""Changes that a hostile or a clumsy writer makes: to bytes of any kind, and to documents whose structure is known."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Dice = random.Random
Mutator = Callable[[bytes, Dice], bytes]

# What JSON can say and Python's writer cannot: it is put in as text.
_RAW = "\ue000RAW:"
NUMBERS = (
    "NaN",
    "-Infinity",
    "1e400",
    "-1e400",
    "9" * 5000,
    "1" + "0" * 39,
    "-0",
    "0.1",
    "1e-320",
    "12345678901234567890",
)
NAMES = (
    "", " ", ".", "..", "../../x", "/etc/passwd", "\x00", "a\x00b", "\x1b[31mred", "\x1b]0;title\x07", "\x9b2J",
    "a\r\nb", "\u202egnp.exe", "\ud800", "x" * 100_000, "[bold]b[/bold]", ":fire:", "$\\frac{", "{0}", "%s%n",
    "é漢🙂", "a b", "*", "[",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**53, 2**63, -(2**63), 2**64, 0.0, 0.5, -1.5, 1e300,
    [], {}, [[]], [None], {"": None}, [1, 2, 3], ["a"], {"a": 1},
)  # fmt: skip
INTEGERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)


def change_bytes(data: bytes, dice: Dice) -> bytes:
    """One to four changes anywhere: bits, runs, whole numbers, pieces left out, doubled or put in."""
    held = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        size = len(held)
        at = dice.randrange(size + 1)
        kind = dice.randrange(8)
        if kind == 0 and size:
            held[at % size] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del held[at:]
        elif kind == 2:
            del held[at : at + dice.randint(1, 64)]
        elif kind == 3:
            held[at:at] = held[at : at + dice.randint(1, 64)]
        elif kind == 4:
            held[at:at] = dice.randbytes(dice.randint(1, 16))
        elif kind == 5:
            form = dice.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            number = dice.choice(INTEGERS) % 2 ** (8 * struct.calcsize(form))
            held[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 6:
            held[at:at] = dice.choice(NAMES[:20]).encode("utf-8", "surrogatepass")[:200]
        elif size:
            start = dice.randrange(size)
            held[start : start + dice.randint(1, 32)] = b"\xff" * dice.randint(0, 32)
    return bytes(held)


def value(dice: Dice) -> Any:
    """Something that a document may hold where something else is expected."""
    kind = dice.randrange(4)
    if kind == 0:
        return _RAW + dice.choice(NUMBERS)
    if kind == 1:
        return dice.choice(NAMES)
    if kind == 2 and dice.random() < 0.1:
        depth = dice.choice((70, 1000, 100_000))
        return _RAW + "[" * depth + "]" * depth
    return dice.choice(VALUES)


def change_tree(tree: Any, dice: Dice, changes: int | None = None) -> Any:
    """Some entries of a JSON tree replaced, dropped, doubled, renamed, moved or shifted a little, in place."""
    for _ in range(changes or dice.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            return value(dice)
        parent, key = dice.choice(places)
        old = parent[key]
        kind = dice.randrange(8)
        if kind <= 2:
            parent[key] = value(dice)
        elif kind == 3:
            del parent[key]
        elif kind == 4 and isinstance(old, int) and not isinstance(old, bool):
            parent[key] = dice.choice((old + 1, old - 1, -old, old * 1000, old // 2, float(old)))
        elif kind == 5 and isinstance(parent, dict):
            parent[dice.choice(NAMES)] = parent.pop(key)
        elif kind == 6 and isinstance(parent, list):
            parent.insert(dice.randrange(len(parent) + 1), old)
        else:
            other, place = dice.choice(places)
            if other is parent or not isinstance(old, (dict, list)):
                # Values change places; never a branch with its own twig, which would be a ring.
                twin = (
                    other.get(place)
                    if isinstance(other, dict)
                    else other[place]
                    if place < len(other)
                    else None
                )
                if not isinstance(twin, (dict, list)):
                    parent[key] = twin
    return tree


def _places(tree: Any) -> Any:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def dump(tree: Any) -> bytes:
    """A JSON tree as text, with the raw parts in place."""
    text = json.dumps(tree, allow_nan=True)
    raw = json.dumps(_RAW)[1:-1]
    text = re.sub(rf'"{re.escape(raw)}([^"]*)"', lambda found: found[1], text)
    return text.encode()


def change_json(data: bytes, dice: Dice) -> bytes:
    """A changed tree; or a changed text."""
    if dice.random() < 0.25:
        return change_bytes(data, dice)
    return dump(change_tree(json.loads(data), dice))


TOML_VALUES = (
    "nan", "inf", "-inf", "9" * 5000, "-1", "0", "1e400", "0.5", "true", '""', '"\\u0000"', '"\\u001b[31m"', '"x"',
    "[]", "[1, 2]", "[0.5, 0.1]", "[nan, 1.0]", '["a"]', "{}", "{a = 1}", "1979-05-27", "0xff", "1_000", "1e308", "2.0",
    "9223372036854775808", "[" * 70 + "]" * 70, "[" * 5000 + "]" * 5000, "'''\n\x1b[2J\n'''", '"' + "n" * 100_000 + '"',
)  # fmt: skip


def change_toml(data: bytes, dice: Dice) -> bytes:
    """A value replaced, a line dropped, doubled or moved, a section put in; or changed bytes."""
    if dice.random() < 0.2:
        return change_bytes(data, dice)
    lines = data.decode().splitlines()
    for _ in range(dice.choice((1, 1, 2, 3))):
        at = dice.randrange(len(lines))
        key, equals, _ = lines[at].partition("=")
        kind = dice.randrange(8)
        if kind <= 4 and equals:
            lines[at] = f"{key}= {dice.choice(TOML_VALUES)}"
        elif kind == 5:
            lines.insert(dice.randrange(len(lines)), lines.pop(at))
        elif kind == 6:
            lines.insert(
                at,
                dice.choice(
                    (
                        '"\\u001b[31mkey" = 1',
                        "[scale.x]",
                        "[optimizer]",
                        "[[variant]]",
                        "a.b.c = 1",
                        lines[at],
                    )
                ),
            )
        elif len(lines) > 1:
            del lines[at]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


CELLS = (
    "nan", "inf", "-1", "0.5", "1e5", "99999999999999999999", "9" * 5000, "", " ", "٣", "²", "\x00", "\x1b[31m", '"',
    '"a\nb"', "../x", "/etc/passwd", "a.png", "x" * 200_000, "\ud800", "True", "None",
)  # fmt: skip


def change_csv(data: bytes, dice: Dice) -> bytes:
    """A cell replaced, added or dropped, a line dropped or doubled; or changed bytes."""
    if dice.random() < 0.3:
        return change_bytes(data, dice)
    rows = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(dice.choice((1, 1, 2, 3))):
        row = dice.choice(rows)
        at = dice.randrange(len(row)) if row else 0
        kind = dice.randrange(6)
        if kind <= 2 and row:
            row[at] = dice.choice(CELLS)
        elif kind == 3:
            row.insert(at, dice.choice(CELLS))
        elif kind == 4 and row:
            del row[at]
        elif dice.random() < 0.5:
            rows.append(list(row))
        elif len(rows) > 1:
            rows.remove(row)
    return "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")


def change_safetensors(data: bytes, dice: Dice, inner: str | None = None) -> bytes:
    """The header's tree, the document that its metadata holds under ``inner``, the length before it, or the bytes."""
    if dice.random() < 0.2:
        return change_bytes(data, dice)
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    if inner is not None and dice.random() < 0.75:
        tree = json.loads(header["__metadata__"][inner])
        header["__metadata__"][inner] = dump(change_tree(tree, dice)).decode()
    elif dice.random() < 0.3 and len(rest) >= 4:
        # Numbers in the tensors themselves: not finite, or enormous.
        at = dice.randrange(len(rest) // 4) * 4
        hostile = struct.pack("<f", dice.choice((float("nan"), float("inf"), -3e38, 1e-45)))
        return data[: 8 + length] + rest[:at] + hostile + rest[at + 4 :]
    else:
        header = change_tree(header, dice)
    text = dump(header)
    size = dice.choice((0, 2**64 - 1, len(text) + 1, 10**8)) if dice.random() < 0.05 else len(text)
    return struct.pack("<Q", size) + text + rest


NPY_TYPES = (
    "<f4",
    "<f8",
    "<f2",
    ">f4",
    "|u1",
    "<u2",
    ">u2",
    "<i4",
    "|b1",
    "<c8",
    "|O",
    "<U4",
    "|S3",
    "|V4",
    "<M8[s]",
    "f16",
    "x",
)
NPY_SHAPES = (
    "()", "(0,)", "(3,)", "(8, 8)", "(0, 8)", "(8, 0)", "(8, 8, 0)", "(8, 8, 3)", "(3, 8, 8)", "(1, 1, 1, 1)",
    "(-1, 8)", "(10**9,)", "(1000000000, 1000000000)", "(99999999999999999999, 3)", "(8.0, 8)", "(True, 8)", "None",
    "'a'", "(8, 8, 9)",
)  # fmt: skip


def change_npy(data: bytes, dice: Dice) -> bytes:
    """The header's type, shape and order; or the bytes."""
    if dice.random() < 0.3:
        return change_bytes(data, dice)
    length = struct.unpack("<H", data[8:10])[0]
    header, rest = data[10 : 10 + length].decode(), data[10 + length :]
    if dice.random() < 0.6:
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': {dice.choice(NPY_SHAPES)}", header)
    if dice.random() < 0.5:
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{dice.choice(NPY_TYPES)}'", header)
    if dice.random() < 0.2:
        header = header.replace("False", dice.choice(("True", "None", "0", "__import__('os')")))
    if dice.random() < 0.05:
        header = dice.choice(("{" * 5000, "(" * 100_000, "9" * 10_000, "{}", "[]", header + "\x1b[2J"))
    text = header.encode()[:65_535]
    return data[:8] + struct.pack("<H", len(text)) + text + rest


def change_tiff(data: bytes, dice: Dice) -> bytes:
    """A field of an entry of the first directory (little-endian, as the seeds are); or the bytes."""
    if dice.random() < 0.3:
        return change_bytes(data, dice)
    held = bytearray(data)
    (start,) = struct.unpack_from("<I", held, 4)
    (count,) = struct.unpack_from("<H", held, start)
    for _ in range(dice.choice((1, 1, 2))):
        entry = start + 2 + 12 * dice.randrange(count)
        what = dice.randrange(4)
        if what == 0:
            struct.pack_into(
                "<H",
                held,
                entry,
                dice.choice((254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 322, 339, 65_000)),
            )
        elif what == 1:
            struct.pack_into("<H", held, entry + 2, dice.choice((0, 1, 2, 3, 4, 5, 12, 16, 255)))
        elif what == 2:
            struct.pack_into("<I", held, entry + 4, dice.choice((0, 1, 2, 3, 100, 2**31, 2**32 - 1)))
        else:
            struct.pack_into(
                "<I",
                held,
                entry + 8,
                dice.choice((0, 1, 2, 3, 5, 7, 8, 16, 32, 64, 1000, 65_535, 2**31, 2**32 - 1)),
            )
    return bytes(held)


def change_png(data: bytes, dice: Dice) -> bytes:
    """The inside of a chunk, with its checksum made right again; or the bytes."""
    if dice.random() < 0.4 or data[:4] != b"\x89PNG":
        return change_bytes(data, dice)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    chosen = dice.choice(chunks)
    if chosen[0] == b"IHDR":
        fields = bytearray(chosen[1])
        place = dice.choice((0, 4, 8, 9, 10, 11, 12))
        if place < 8:
            struct.pack_into(">I", fields, place, dice.choice((0, 1, 2, 100, 20_000, 2**31 - 1, 2**32 - 1)))
        else:
            fields[place] = dice.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chosen[1] = bytes(fields)
    else:
        chosen[1] = change_bytes(chosen[1], dice)
    if dice.random() < 0.2:
        chunks.insert(
            1, [dice.choice((b"tEXt", b"zTXt", b"iCCP", b"PLTE", b"tRNS", b"acTL")), dice.randbytes(20)]
        )
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def change_zip(data: bytes, dice: Dice) -> bytes:
    """A file within the archive changed, left out or renamed; or the bytes."""
    if dice.random() < 0.3:
        return change_bytes(data, dice)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice(list(files))
    kind = dice.randrange(4)
    if kind <= 1:
        files[name] = change_bytes(files[name], dice)
    elif kind == 2:
        del files[name]
    else:
        files[dice.choice(("archive/evil.pkl", "../../x", name + "\x1b[31m"))] = files.pop(name)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return out.getvalue()
