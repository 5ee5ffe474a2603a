"""Modules of compiled code: each is started once in a process; one that cannot start is told of and done without.

And their kernels, each compiled once on a machine; where that cannot be read back, it is told of and compiled again.
"""

import builtins
import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from repmamba.errors import BackendFallback

CACHE_ADVICE = (
    "If what Numba keeps of compiled code is damaged or finds no place, let NUMBA_CACHE_DIR name an empty folder."
)

_PLAIN = ((builtins, "min", min), (builtins, "max", max), (math, "pow", math.pow))


def start(name: str) -> ModuleType:
    """The module, imported, its own `start` called where it has one. Raises whatever stands in the way."""
    with _plain_builtins():
        module = importlib.import_module(name)
        if hasattr(module, "start"):
            module.start()
    return module


@cache
def started(name: str, purpose: str) -> ModuleType | None:
    """The module of Numba's kernels for a purpose, or None where it cannot start; asked once in a process.

    Warns (BackendFallback) unless Numba itself does not run, which whoever chooses the scan is told.
    """
    try:
        return start(name)
    except ImportError:
        return None
    except Exception as fault:  # whatever a compiler or what is left of its cache raises, torch's operations work
        warn_once(
            f"The compiled passes of {purpose} cannot start ({in_words(fault)}). Operations of torch run instead, and "
            f"take longer. {CACHE_ADVICE}"
        )
        return None


def load(function: Callable[..., Any], signature: Any, **options: Any) -> Callable[..., Any]:
    """The function, compiled by Numba for one signature, or loaded from its cache; it runs without Python's lock.

    Warns (BackendFallback) where what the cache holds cannot be read, and compiles without it. Raises what Numba does
    where a cache has no place at all, or where the function does not compile.
    """
    from numba import njit

    loaded = njit(nogil=True, cache=True, **options)(function)
    try:
        loaded.compile(signature)
    except Exception as fault:  # whatever a damaged file makes of unpickling
        warn_once(
            f"Compiled code cannot be loaded from Numba's cache, or not be kept there ({in_words(fault)}). It is "
            f"compiled anew in every process, which takes its time. {CACHE_ADVICE}"
        )
        loaded = njit(nogil=True, **options)(function)
        loaded.compile(signature)
    loaded.disable_compile()
    result: Callable[..., Any] = loaded
    return result


def in_words(fault: Exception) -> str:
    """What was raised, in one line."""
    return f"{type(fault).__name__}: {' '.join(str(fault).split()) or 'no reason given'}"


@cache
def warn_once(text: str) -> None:
    """A BackendFallback, once in a process for each text."""
    warnings.warn(text, BackendFallback, stacklevel=2)


@contextmanager
def _plain_builtins() -> Iterator[None]:
    """Python's own min, max and pow. torch.export replaces them while it traces, and a kernel may be first used there:
    numba, imported in the middle of it, would take the replacements for what it has to compile.
    """
    found = [getattr(module, name) for module, name, _ in _PLAIN]
    for module, name, plain in _PLAIN:
        setattr(module, name, plain)
    try:
        yield
    finally:
        for (module, name, _), replaced in zip(_PLAIN, found, strict=True):
            setattr(module, name, replaced)
