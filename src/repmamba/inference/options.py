"""Options by keyword: what each takes, checked in one place, so that a wrong one is one line and
not a traceback.

A table of kinds says it; the scene room has a larger one of its own (scene/arguments.py). Whether a
value makes sense is asked where it is used.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from repmamba.errors import UsageError

LEAST = {"tile": 2, "halo": 0}  # lr pixels


@dataclass(frozen=True, slots=True)
class Kind:
    """What an option takes."""

    words: str  # as an error says it
    # a value in plain Python types; raises TypeError or ValueError where it is none
    taken: Callable[[Any], Any]


def checked(
    given: Mapping[str, Any], kinds: Mapping[str, Kind], hints: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The options given, those that are None left out, in plain Python types.

    hints: for names that one might expect, the name here. Raises UsageError for other names and for
    wrong types.
    """
    for name in given:
        if name not in kinds:
            hint = f"; what you mean is {hints[name]}" if hints and name in hints else ""
            raise UsageError(
                f"There is no option {name!r:.60}{hint}. There are {', '.join(kinds)}."
            )
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
    """An integer of Python or NumPy; True is none."""
    if isinstance(value, bool):
        raise TypeError("True and False are no numbers.")
    return operator.index(value)


def number(value: Any) -> float:
    """A real number of Python or NumPy."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError("This is no number.")
    return float(value)


def several(
    taken: Callable[[Any], Any], count: int | None = None
) -> Callable[[Iterable[Any]], tuple[Any, ...]]:
    """Values of one kind, one after the other; as many as count, where it is given."""

    def read(values: Iterable[Any]) -> tuple[Any, ...]:
        found = tuple(taken(value) for value in values)
        if count is not None and len(found) != count:
            raise ValueError(f"{len(found)} in place of {count}")
        return found

    return read


def several_or_one(value: Any) -> tuple[float, ...]:
    """Real numbers; one alone, too. Raises ValueError for none at all."""
    numbers = (number(value),) if isinstance(value, Real) else several(number)(value)
    if not numbers:
        raise ValueError("There is none.")
    return numbers


def check_cut(tile: int | None, halo: int | None) -> None:
    """Raise UsageError for a tile or a halo by which no image can be cut; None is left to the
    weights.
    """
    for name, length in (("tile", tile), ("halo", halo)):
        if length is not None and not cuts(name, length):
            raise UsageError(
                f"{name}={length}: give an even number of pixels from {LEAST[name]} on, since the "
                "network pools two by "
                "two."
            )


def cuts(name: str, length: int) -> bool:
    """Whether a "tile" or a "halo" may have so many lr pixels: cut at an odd place, other pixels
    would be pooled.
    """
    return length % 2 == 0 and length >= LEAST[name]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("This is no text.")
    return value


def yes_or_no(value: Any) -> bool:
    """True or False, of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError("This is neither True nor False.")
    return bool(value)


def _one_of(value: int, numbers: tuple[int, ...]) -> int:
    if value not in numbers:
        raise ValueError("This is none of them.")
    return value


def _called(value: Any) -> Any:
    if not callable(value):
        raise TypeError("This cannot be called.")
    return value


def path_of(name: str, value: Any) -> str:
    """A path as text. Raises UsageError that names the argument."""
    return str(_taken(name, value, PATH))


TEXT, FLAG = Kind("a name", _text), Kind("True or False", yes_or_no)
PATH = Kind("a path, as text or as a Path", lambda value: _text(os.fspath(value)))
CALLED = Kind("a function", _called)
WHOLE = Kind("a whole number", whole)
PIXELS = Kind("a whole number of pixels", whole)
NODATA = Kind("a number, or one for each band", several_or_one)
RANGE = Kind("two numbers, what is black and what is white", several(number, 2))


def _range(value: Any) -> Any:
    return value if isinstance(value, str) and value == "robust" else RANGE.taken(value)


def _layout(value: Any) -> str:
    if value not in ("bands-first", "bands-last"):
        raise ValueError("This is neither.")
    return str(value)


OF_LOAD = {
    "weights": PATH,
    "scale": Kind("2, 3 or 4", lambda value: _one_of(whole(value), (2, 3, 4))),
    "backend": TEXT,
    "precision": TEXT,
    "fuse": FLAG,
    "ensemble": FLAG,
    "revision": TEXT,
}
"""What `load` takes, beside a device."""

OF_ARRAYS = {
    "value_range": Kind(f"{RANGE.words}, or 'robust'", _range),
    "nodata": NODATA,
    "consistent": FLAG,
    "layout": Kind("'bands-first' or 'bands-last'", _layout),
    "tile": PIXELS,
    "halo": PIXELS,
    "workers": WHOLE,
}
"""What Upscaler.upscale takes."""
