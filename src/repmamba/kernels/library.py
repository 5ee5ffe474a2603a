"""Load the compiled kernels through ctypes; kernels.h describes their interface.

`library()` loads them once, from beside this file, and takes the highest level that the processor
runs. REPMAMBA_LEVEL selects a lower one. The library has no state, so any thread may call it, also
in a forked process.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from repmamba.errors import UsageError
from repmamba.kernels.sources import digest

VARIABLE = "REPMAMBA_LEVEL"
FOLDER = Path(__file__).parent
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
PATH = FOLDER / f"_kernels{SUFFIX}"

LANES = {"v2": 4, "v3": 8, "v4": 16, "neon": 4}  # float32 numbers in a register, by level
_V3, _V4, _PAIRS, _AMX = 1, 2, 4, 8  # as in levels.cpp
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18  # Linux on x86-64

# kernel(first, last, arguments, scratch); the last two are pointers to a struct and to memory
Kernel = Callable[[int, int, object, object], None]


def fields(names: str) -> list[tuple[str, Any]]:
    """The fields of a struct of arguments, for ctypes: names in order, * marks pointers, % doubles.

    The others are int64. Pointers are addresses: the caller keeps the memory alive.
    """
    kinds = {"*": ctypes.c_void_p, "%": ctypes.c_double}
    return [(name.lstrip("*%"), kinds.get(name[0], ctypes.c_int64)) for name in names.split()]


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded kernels of one level."""

    handle: ctypes.CDLL
    level: str
    pairs: bool  # the processor multiplies pairs of bfloat16
    amx: bool  # it multiplies tiles, and the system lets this process use their registers

    @property
    def lanes(self) -> int:
        """float32 numbers in a register."""
        return LANES[self.level]

    @property
    def panel(self) -> int:
        """Columns of a panel of weights, see products.h."""
        return int(self._function("panel")())

    def address(self, name: str) -> int:
        """The address of a kernel, for the stages of a plan."""
        address = ctypes.cast(self._function(name), ctypes.c_void_p).value
        assert address is not None
        return address

    def scratch(self, name: str, arguments: ctypes.Structure) -> int:
        """How many float32 numbers of scratch a call of an inference kernel needs."""
        function = self._function(f"{name}_scratch")
        function.restype = ctypes.c_int64
        return int(function(ctypes.byref(arguments)))

    def kernel(self, name: str, *, pairs: bool = False) -> Kernel:
        """A kernel of this level by its name; pairs: the one with products of pairs."""
        function = self._function(name, "pairs" if pairs else self.level)
        function.argtypes = (ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        function.restype = None
        found: Kernel = function
        return found

    def _function(self, name: str, level: str | None = None) -> Any:
        return getattr(self.handle, f"{name}_{level or self.level}")


@cache
def library() -> Library:
    """The kernels, loaded once per process.

    Raises OSError: if there are none for this platform, they cannot be loaded, or they are older
    than their sources; UsageError: if the processor does not run the level of REPMAMBA_LEVEL.
    """
    handle = _loaded()
    handle.features.restype = ctypes.c_int64
    handle.take_part.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    handle.take_part.restype = None
    features = handle.features()
    level = _level(levels(features))
    v4 = level == "v4"
    return Library(
        handle,
        level,
        pairs=v4 and bool(features & _PAIRS),
        amx=v4 and bool(features & _AMX) and _tiles_granted(),
    )


def levels(features: int) -> tuple[str, ...]:
    """The levels that a processor with these features runs, lowest first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("neon",)
    return ("v2", *(["v3"] if features & _V3 else []), *(["v4"] if features & _V4 else []))


def _level(runs: tuple[str, ...]) -> str:
    wanted = os.environ.get(VARIABLE) or runs[-1]
    if wanted not in runs:
        raise UsageError(
            f"{VARIABLE} asks for kernels of the level '{wanted}'; this processor runs "
            f"{', '.join(runs)}: name one of them, or none."
        )
    return wanted


def _loaded() -> ctypes.CDLL:
    if not PATH.exists():
        raise OSError(
            f"this installation has no {PATH.name}: it was made where ziglang could not compile "
            "the kernels"
        )
    handle = ctypes.CDLL(str(PATH))  # its OSError says what is wrong with the file
    try:
        built_from = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(handle, "sources")))
    except ValueError:
        raise OSError(f"{PATH} is not a library of kernels") from None
    if digest(FOLDER) not in ("", built_from.decode("ascii")):
        raise OSError(
            f"{PATH.name} is older than its sources: run `pip install --editable .` again"
        )
    return handle


def _tiles_granted() -> bool:
    """Whether the system lets this process use the registers of AMX; Linux must be asked."""
    if sys.platform != "linux":
        return False
    refusal: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return refusal == 0
