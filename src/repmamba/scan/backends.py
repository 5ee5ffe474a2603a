"""The backends of the selective scan, and the choice among them.

The first backend in the table that supports the device is used. `backend=` of a call, or else the
environment variable REPMAMBA_SCAN, puts another one first. If a backend does not support the device
or type, or cannot start, the next one is used, with a BackendFallback warning once per reason.
"""

import builtins
import importlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from repmamba.errors import BackendFallback, UsageError, warn

VARIABLE = "REPMAMBA_SCAN"


@dataclass(frozen=True, slots=True)
class Backend:
    """A module with a function for sequences, and perhaps one for whole maps."""

    name: str
    module: str
    devices: tuple[str, ...] | None  # types of torch.device; None: all
    dtypes: tuple[torch.dtype, ...]  # that it computes in
    # of maps that it reads without a copy and converts to float32 on the way
    halves: tuple[torch.dtype, ...] = ()
    sequences: str = "scan_sequences"  # (u, dt, A, B, C, D) -> y, as scan_by_definition
    # (p, projected, dt_weight, dt_bias, A, D) -> map; without one, maps go as sequences
    maps: str | None = "scan_map"

    def serves(self, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
        """Whether it can compute on this device in this type."""
        return (self.devices is None or device.type in self.devices) and dtype in self.dtypes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Loaded:
    """A backend that has started."""

    backend: Backend
    sequences: Callable[..., Tensor]
    maps: Callable[..., Tensor] | None


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Which backend runs, and the reason in words."""

    name: str
    why: str


SINGLE = (torch.float32,)
BOTH = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)

# in order of preference
BACKENDS = (
    Backend("triton", "repmamba.scan.triton_gpu", ("cuda",), BOTH, HALVES),
    Backend("native", "repmamba.scan.native_cpu", ("cpu",), SINGLE),
    Backend(
        *("chunked", "repmamba.scan.chunked", None, BOTH, ()),
        *("scan_in_chunks", "scan_map_in_chunks"),
    ),
    Backend(
        *("definition", "repmamba.scan.definition", None, BOTH, ()), *("scan_by_definition", None)
    ),
)

_PLAIN = ((builtins, "min", min), (builtins, "max", max), (math, "pow", math.pow))

_LOADED: dict[str, Loaded] = {}  # those that have started


def choose(
    device: torch.device, requested: str | None = None, dtype: torch.dtype = torch.float32
) -> Loaded:
    """The backend for tensors on `device` in `dtype`: the requested one, or REPMAMBA_SCAN's.

    Warns (BackendFallback) if another one has to be used. Raises UsageError for an unknown name.
    """
    return _LOADED[_name(device.type, requested, dtype)]


def _name(device: str, requested: str | None, dtype: torch.dtype) -> str:
    loaded, _, failures = _first_that_serves(device, _wanted(requested), dtype)
    for failure in failures:
        warn_once(f"{failure} The scan runs on '{loaded.backend.name}' instead.")
    return loaded.backend.name


# torch.compile treats the answer as a constant: it cannot follow imports or start a compiler. This
# is all that torch.compiler.assume_constant_result does, but importing that takes seconds.
_name._dynamo_marked_constant = True  # type: ignore[attr-defined]


def explain(device: torch.device | str = "cpu", requested: str | None = None) -> BackendChoice:
    """The backend that `choose` would return, and why, for `repmamba info`; does not warn."""
    loaded, wish, failures = _first_that_serves(torch.device(device).type, _wanted(requested))
    return BackendChoice(loaded.backend.name, " ".join([wish, *failures]))


def survey(device: torch.device | str = "cpu") -> dict[str, str]:
    """For each backend whether it runs on the device, or why not. Starts each."""
    place = torch.device(device)
    return {backend.name: _state(backend, place) for backend in BACKENDS}


def _state(backend: Backend, device: torch.device) -> str:
    if not backend.serves(device):
        return f"Does not run on {device.type}: it is for {', '.join(backend.devices or ())}."
    loaded = _start(backend)
    return loaded if isinstance(loaded, str) else f"Runs on {device.type}."


def _wanted(requested: str | None) -> tuple[str | None, str]:
    """The name that was requested, if any, and a sentence on who requested it."""
    name, where = requested, "the argument backend"
    if not requested:
        name, where = os.environ.get(VARIABLE), VARIABLE
    if not name:
        return None, "The first in order of preference for this device."
    if name not in {backend.name for backend in BACKENDS}:
        known = ", ".join(backend.name for backend in BACKENDS)
        raise UsageError(
            f"{where} requests the scan '{name}', but there are {known}: name one of them, or none."
        )
    return name, f"Asked for by {where}."


def _first_that_serves(
    device: str, wanted: tuple[str | None, str], dtype: torch.dtype = torch.float32
) -> tuple[Loaded, str, list[str]]:
    name, wish = wanted
    failures = []
    for backend in sorted(BACKENDS, key=lambda backend: backend.name != name):
        if not backend.serves(torch.device(device), dtype):
            if backend.name == name:
                kind = "" if dtype in backend.dtypes else f" in {dtype}".replace("torch.", "")
                failures.append(f"The scan '{name}' does not run on {device}{kind}.")
            continue
        loaded = _start(backend)
        if isinstance(loaded, Loaded):
            return loaded, wish, failures
        failures.append(loaded)
    raise UsageError(f"No scan can run on {device}: " + " ".join(failures))


@cache
def _start(backend: Backend) -> Loaded | str:
    """The functions of a backend, or why it cannot start. Tried once per process."""
    try:
        module = _import(backend.module)
    except UsageError:
        raise
    except Exception as fault:  # a compiler or library may raise anything; the next backend works
        return f"The scan '{backend.name}' cannot start ({_in_words(fault)})."
    maps = getattr(module, backend.maps) if backend.maps else None
    _LOADED[backend.name] = Loaded(backend, getattr(module, backend.sequences), maps)
    return _LOADED[backend.name]


def _import(name: str) -> ModuleType:
    """Import a module and call its `start` if it has one. Raises whatever they raise."""
    with _plain_builtins():
        module = importlib.import_module(name)
        if hasattr(module, "start"):
            module.start()
    return module


@contextmanager
def _plain_builtins() -> Iterator[None]:
    """Restore Python's own min, max and pow meanwhile.

    torch.export replaces them while it traces, and a backend may first be used there: a kernel
    compiler imported at that moment would try to compile the replacements.
    """
    found = [getattr(module, name) for module, name, _ in _PLAIN]
    for module, name, plain in _PLAIN:
        setattr(module, name, plain)
    try:
        yield
    finally:
        for (module, name, _), replaced in zip(_PLAIN, found, strict=True):
            setattr(module, name, replaced)


def _in_words(fault: Exception) -> str:
    """An exception in one line."""
    return f"{type(fault).__name__}: {' '.join(str(fault).split()) or 'no reason given'}"


@cache
def warn_once(text: str) -> None:
    """Warn with BackendFallback, once per process for each text."""
    warn(text, BackendFallback)
