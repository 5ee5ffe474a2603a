"""Keyword options checked in one place, so that a wrong one gives one line and no traceback."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np

from repmamba.errors import UsageError

# in lr pixels
LEAST = {"tile": 2, "halo": 0}


@dataclass(frozen=True, slots=True)
class Kind:
    """What an option accepts."""

    words: str  # for error messages
    # to a plain Python value; raises TypeError or ValueError if it is not accepted
    taken: Callable[[Any], Any]


def checked(given: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """The options given, without those that are None, as plain Python values.

    Raises UsageError for values of a wrong type.
    """
    return {
        name: _taken(name, value, kinds[name]) for name, value in given.items() if value is not None
    }


def _taken(name: str, value: Any, kind: Kind) -> Any:
    try:
        return kind.taken(value)
    except (TypeError, ValueError) as wrong:
        raise UsageError(
            f"{name} is {' '.join(f'{value!r:.80}'.split())}; it takes {kind.words}."
        ) from wrong


def whole(value: Any) -> int:
    """An integer of Python or NumPy, but not a bool."""
    if isinstance(value, bool):
        raise TypeError("True and False are not numbers.")
    return operator.index(value)


def number(value: Any) -> float:
    """A real number of Python or NumPy, but not a bool."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError("This is not a number.")
    return float(value)


def several(
    taken: Callable[[Any], Any], count: int | None = None
) -> Callable[[Iterable[Any]], tuple[Any, ...]]:
    """A reader of several values of one kind; exactly `count` if given."""

    def read(values: Iterable[Any]) -> tuple[Any, ...]:
        found = tuple(taken(value) for value in values)
        if count is not None and len(found) != count:
            raise ValueError(f"{len(found)} instead of {count}")
        return found

    return read


def nodata_of(value: Any) -> tuple[float, ...] | Literal["none"]:
    """One real number or several, or "none". Raises TypeError and ValueError."""
    if isinstance(value, str) and value == "none":
        return "none"
    numbers = (number(value),) if isinstance(value, Real) else several(number)(value)
    if not numbers:
        raise ValueError("There is none.")
    return numbers


def check_cut(tile: int | None, halo: int | None) -> None:
    """Raise UsageError for an odd or too small tile or halo; None is that of the weights."""
    for name, length in (("tile", tile), ("halo", halo)):
        if length is not None and not cuts(name, length):
            raise UsageError(
                f"{name}={length}: expected an even number of pixels from {LEAST[name]} up, "
                "because the network pools two by two."
            )


def cuts(name: str, length: int) -> bool:
    """Whether a "tile" or a "halo" may have this length: an odd one would pool other pixels."""
    return length % 2 == 0 and length >= LEAST[name]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("This is not text.")
    return value


def yes_or_no(value: Any) -> bool:
    """True or False, of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError("This is neither True nor False.")
    return bool(value)


def _one_of(value: int, numbers: tuple[int, ...]) -> int:
    if value not in numbers:
        raise ValueError("This is not one of them.")
    return value


def _called(value: Any) -> Any:
    if not callable(value):
        raise TypeError("This cannot be called.")
    return value


TEXT, FLAG = Kind("a name", _text), Kind("True or False", yes_or_no)
PATH = Kind("a path, as text or as a Path", lambda value: _text(os.fspath(value)))
CALLED = Kind("a function", _called)
WHOLE = Kind("a whole number", whole)
PIXELS = Kind("a whole number of pixels", whole)
NODATA = Kind("a number, one for each band, or 'none'", nodata_of)
RANGE = Kind("two numbers, the values of black and white", several(number, 2))


def _range(value: Any) -> Any:
    return value if isinstance(value, str) and value == "robust" else RANGE.taken(value)


def _layout(value: Any) -> str:
    if value not in ("bands-first", "bands-last"):
        raise ValueError("This is neither.")
    return str(value)


# options of `load` beside the device
OF_LOAD = {
    "weights": PATH,
    "scale": Kind("2, 3 or 4", lambda value: _one_of(whole(value), (2, 3, 4))),
    "backend": TEXT,
    "precision": TEXT,
    "fuse": FLAG,
    "ensemble": FLAG,
    "revision": TEXT,
}

# options of Upscaler.upscale
OF_ARRAYS = {
    "value_range": Kind(f"{RANGE.words}, or 'robust'", _range),
    "nodata": NODATA,
    "consistent": FLAG,
    "layout": Kind("'bands-first' or 'bands-last'", _layout),
    "tile": PIXELS,
    "halo": PIXELS,
    "workers": WHOLE,
}
