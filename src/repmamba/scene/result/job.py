"""The identity of a job: everything that decides the pixels of a result, and its hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Json: TypeAlias = Any  # a JSON value; NaN and infinities are strings


def canonical_json(value: Json) -> str:
    """A value as JSON with sorted keys, no spaces, and NaN and infinities as strings."""
    return json.dumps(_without_nan(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _without_nan(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def digest128(*parts: bytes | memoryview) -> str:
    """The first 128 bits of SHA-256 as hex, to keep receipts of 100 000 tiles small."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """Everything that decides the pixels of a result: equal identities give equal pixels.

    Values are JSON values. How a result is stored (format, compression) is not included.
    """

    source: Mapping[str, Json]  # the input: name, bytes, digest ... (see source.origin)
    weights: str  # digest of the network's parameters
    # scale, tile, halo, range, bands, precision ...
    settings: Mapping[str, Json] = field(default_factory=dict)
    version: str = ""  # of repmamba; others may compute other pixels

    @property
    def id(self) -> str:
        """The hash of the identity, 32 hex digits."""
        return digest128(canonical_json(self.as_json()).encode())

    def as_json(self) -> dict[str, Json]:
        """The identity as JSON values."""
        values: dict[str, Json] = _without_nan(
            {
                "source": self.source,
                "weights": self.weights,
                "settings": self.settings,
                "version": self.version,
            }
        )
        return values


def differences(before: Json, now: Json, name: str = "") -> list[str]:
    """Where two JSON values differ, as "name: before -> now" for each leaf."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted(before.keys() | now.keys())
        lists = [
            differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
            for key in keys
        ]
        return [line for lines in lists for line in lines]
    return [] if before == now else [f"{name}: {before} -> {now}"]
