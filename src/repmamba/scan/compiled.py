"""Modules of compiled code: each is started once in a process; one that cannot start is told of and done without."""

import importlib
import warnings
from functools import cache
from types import ModuleType

from repmamba.errors import BackendFallback


def start(name: str) -> ModuleType:
    """The module, imported, its own `start` called where it has one. Raises whatever stands in the way."""
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
