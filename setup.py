"""The C++ kernels of the operator, built by pip: a library with a C interface for each level of x86-64.

They belong to no version of Python, so that one wheel serves all. Where no compiler is, or it knows no such level,
there is no library, and the operator takes PyTorch (``tiledse.explain`` says so).
"""

from __future__ import annotations

import os
import platform
import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/tiledse/op/cpp")
# A library of other sources than those that lie beside it is not called (op/by_cpp.py).
CHECKSUM = zlib.crc32(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]*"))))
X86 = platform.machine().lower() in ("x86_64", "amd64")
# What compilers know as -march=x86-64-v2, v3 and v4 since gcc 11, for older ones too.
V3 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
LEVELS = (
    {
        "v2": ("-msse4.2", "-mpopcnt"),
        "v3": V3,
        "v4": (*V3, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"),
    }
    if X86
    else {"plain": ()}
)


class BuildLibraries(build_ext):
    """Names without a version of Python, and all levels at once."""

    def finalize_options(self) -> None:
        """As many at once as there are processors."""
        super().finalize_options()
        self.parallel = self.parallel or min(os.cpu_count() or 1, len(LEVELS))

    def get_ext_filename(self, fullname: str) -> str:
        """The name that op/by_cpp.py loads."""
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None of a Python module's."""
        return []


class Wheel(bdist_wheel):
    """For any Python 3 of this system."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, its binary interface, and the system."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"tiledse.op.kernels_{level}",
            [str(SOURCES / "squeeze_excite.cpp")],
            depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
            define_macros=[("TILEDSE_SOURCES", f"{CHECKSUM}u")],
            extra_compile_args=["-O3", "-g0", "-std=c++14", "-fopenmp-simd", "-fvisibility=default", *flags],
            language="c++",
            optional=True,
        )
        for level, flags in LEVELS.items()
    ],
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)
