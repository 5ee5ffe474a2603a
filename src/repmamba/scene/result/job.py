"""The identity of a job: all that decides the pixels of a result, its hash, and how two of them
differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Json: TypeAlias = Any  # what JSON can hold; floats that it cannot (NaN) are spelt out


def canonical_json(value: Json) -> str:
    """The one spelling of a value as JSON: keys sorted, no spaces, NaN and infinities as
    strings.
    """
    return json.dumps(_spelt(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _spelt(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _spelt(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelt(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def digest128(*parts: bytes | memoryview) -> str:
    """The first 128 bits of SHA-256, as hex: enough against chance, short enough for a receipt of
    100 000 tiles.
    """
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What decides every pixel of a result. Equal identities give equal pixels; nothing else is in
    it.

    Values are those of JSON. The way a result is stored (format, compression) is not part of it.
    """

    source: Mapping[str, Json]  # the input: name, bytes, digest ... (see source.origin)
    weights: str  # digest of the network's numbers
    # scale, tile, halo, range, bands, precision ...
    settings: Mapping[str, Json] = field(default_factory=dict)
    version: str = ""  # of repmamba: another one may compute other pixels

    @property
    def id(self) -> str:
        """32 hex digits, the hash of all of it."""
        return digest128(canonical_json(self.as_json()).encode())

    def as_json(self) -> dict[str, Json]:
        """All of it as JSON values."""
        values: dict[str, Json] = _spelt(
            {
                "source": self.source,
                "weights": self.weights,
                "settings": self.settings,
                "version": self.version,
            }
        )
        return values


def differences(before: Json, now: Json, name: str = "") -> list[str]:
    """Where two JSON values differ, as "name: before -> now", leaf by leaf."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted(before.keys() | now.keys())
        lists = [
            differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
            for key in keys
        ]
        return [line for lines in lists for line in lines]
    return [] if before == now else [f"{name}: {before} -> {now}"]
