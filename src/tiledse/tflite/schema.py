"""The schema of TensorFlow Lite files, from the package ai-edge-litert, with every read checked.

The generated classes trust their file: an offset may lead anywhere, and a vector may claim any length. Here they get a
table that looks at each offset and length first, so a file that is cut off, or made to do harm, ends in one error.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

from ..errors import TiledSEError
from ..extras import missing


class BadFile(Exception):
    """A file whose offsets lead out of it, or in circles."""


class Bytes(bytes):
    """The bytes of a file, and how many more reads are allowed: an honest file needs fewer than it has bytes."""

    left: int


@cache
def schema() -> ModuleType:
    """The schema module, with checked reads.

    Raises:
        TiledSEError: the package is not installed.
    """
    try:
        import flatbuffers

        spec = importlib.util.find_spec("ai_edge_litert.schema_py_generated")
        assert spec is not None
        assert spec.loader is not None
    except (ImportError, AssertionError) as error:
        raise missing("TensorFlow Lite files need", "ai-edge-litert") from error
    # A copy of our own: other users of the package keep theirs as it is.
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parts = {**vars(flatbuffers), "table": SimpleNamespace(Table=_checked_table())}
    module.flatbuffers = SimpleNamespace(**parts)  # type: ignore[attr-defined]
    return module


def parse(data: bytes) -> Any:
    """The ``ModelT`` of a file.

    Raises:
        BadFile: it is none, or was cut off.
    """
    checked = Bytes(data)
    checked.left = 4 * len(data) + 4096
    if len(data) < 16 or data[4:8] != b"TFL3":
        raise BadFile("it does not begin as one")
    try:
        return schema().ModelT.InitFromObj(schema().Model.GetRootAs(checked, 0))
    except (BadFile, TiledSEError):  # the second: the schema's package is missing
        raise
    except Exception as error:  # numbers out of their range, text that is none
        raise BadFile(str(error)) from error


def pack(model: Any) -> bytes:
    """The file of a ``ModelT``."""
    builder = _builder()(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@cache
def names(table: str) -> dict[int, str]:
    """The names of an enumeration of the schema, by number."""
    members = vars(getattr(schema(), table)).items()
    return {number: name for name, number in members if isinstance(number, int)}


@cache
def _builder() -> Any:
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        """Lays arrays on 16 bytes, as the schema asks of buffers (``force_align``); the generated code does not."""

        def CreateNumpyVector(self, x: Any) -> int:
            self.Prep(16, x.nbytes)
            return int(super().CreateNumpyVector(x))

    return Builder


@cache
def _checked_table() -> Any:
    from flatbuffers import encode
    from flatbuffers import number_types as kinds
    from flatbuffers.table import Table

    offset = kinds.UOffsetTFlags

    class Checked(Table):  # type: ignore[misc]
        """A table of a flatbuffer that reads within its file."""

        __slots__ = ()

        def check(self, start: int, size: int) -> None:
            """Check that a stretch lies in the file, and count the read."""
            data = self.Bytes
            if not 0 <= start <= len(data) - size:
                raise BadFile(f"an offset leads to byte {start:,} of {len(data):,}")
            if isinstance(data, Bytes):
                data.left -= 1
                if data.left < 0:
                    raise BadFile("its offsets lead in circles")

        def Get(self, flags: Any, off: int) -> Any:
            self.check(off, flags.bytewidth)
            return flags.py_type(encode.Get(flags.packer_type, self.Bytes, off))

        def Indirect(self, off: int) -> int:
            return int(off + self.Get(offset, off))

        def Union(self, other: Table, off: int) -> None:
            other.Pos, other.Bytes = self.Indirect(off + self.Pos), self.Bytes

        def Vector(self, off: int) -> int:
            return self.Indirect(off + self.Pos) + int(offset.bytewidth)

        def VectorLen(self, off: int) -> int:
            start = self.Indirect(off + self.Pos)
            length = int(self.Get(offset, start))
            self.check(start + offset.bytewidth, length)
            return length

        def String(self, off: int) -> bytes:
            start = self.Indirect(off)
            length = int(self.Get(offset, start))
            self.check(start + offset.bytewidth, length)
            return bytes(self.Bytes[start + offset.bytewidth : start + offset.bytewidth + length])

    return Checked
