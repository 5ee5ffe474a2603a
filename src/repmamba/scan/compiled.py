"""The start of a backend's module of compiled code, and what is said of one that cannot start."""

import builtins
import importlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from repmamba.errors import BackendFallback

_PLAIN = ((builtins, "min", min), (builtins, "max", max), (math, "pow", math.pow))


def start(name: str) -> ModuleType:
    """The module, imported, its own `start` called where it has one. Raises whatever stands in the
    way.
    """
    with _plain_builtins():
        module = importlib.import_module(name)
        if hasattr(module, "start"):
            module.start()
    return module


def in_words(fault: Exception) -> str:
    """What was raised, in one line."""
    return f"{type(fault).__name__}: {' '.join(str(fault).split()) or 'no reason given'}"


@cache
def warn_once(text: str) -> None:
    """A BackendFallback, once in a process for each text."""
    warnings.warn(text, BackendFallback, stacklevel=2)


@contextmanager
def _plain_builtins() -> Iterator[None]:
    """Python's own min, max and pow. torch.export replaces them while it traces, and a backend may
    be first used there: a compiler of kernels, imported in the middle of it, would take the
    replacements for what it has to compile.
    """
    found = [getattr(module, name) for module, name, _ in _PLAIN]
    for module, name, plain in _PLAIN:
        setattr(module, name, plain)
    try:
        yield
    finally:
        for (module, name, _), replaced in zip(_PLAIN, found, strict=True):
            setattr(module, name, replaced)
