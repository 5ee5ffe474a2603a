"""The compiled kernels, found beside this file and loaded through ctypes; kernels.h says what is in them.

`library()` loads them once. It chooses the highest level that the processor runs; REPMAMBA_LEVEL
names a lower one.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VARIABLE = "REPMAMBA_LEVEL"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
PATH = Path(__file__).with_name(f"_kernels{SUFFIX}")

LANES = {"v2": 4, "v3": 8, "v4": 16, "neon": 4}
"""float32 numbers in a register of each level."""

_V3, _V4, _PAIRS, _AMX = 1, 2, 4, 8  # as levels.cpp has them

Kernel = Callable[[int, int, object, object], None]
"""kernel(first, last, arguments, scratch): pointers to a struct of arguments and to scratch memory."""


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded kernels of one level."""

    handle: ctypes.CDLL
    level: str
    pairs: bool  # products of pairs of bfloat16 are an instruction
    amx: bool  # and so are those of tiles

    @property
    def lanes(self) -> int:
        """float32 numbers in a register."""
        return LANES[self.level]

    def kernel(self, name: str, *, pairs: bool = False) -> Kernel:
        """A kernel of this level, by its name in kernels.h; pairs: with products of pairs, where it is so built."""
        function = getattr(self.handle, f"{name}_{'pairs' if pairs else self.level}")
        function.argtypes = (ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        function.restype = None
        found: Kernel = function
        return found


@cache
def library() -> Library:
    """The kernels. Raises OSError where there are none for this platform, or they cannot be loaded."""
    handle = ctypes.CDLL(str(PATH))
    handle.features.restype = ctypes.c_int64
    features = handle.features()
    level = os.environ.get(VARIABLE) or levels(features)[-1]
    return Library(
        handle,
        level,
        pairs=level == "v4" and bool(features & _PAIRS),
        amx=level == "v4" and bool(features & _AMX),
    )


def levels(features: int) -> tuple[str, ...]:
    """The levels that a processor with these features runs, the lowest first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("neon",)
    return ("v2", *(["v3"] if features & _V3 else []), *(["v4"] if features & _V4 else []))
