"""Files of named tensors from anywhere, opened with suspicion: safetensors, and what PyTorch has
saved.

What a file declares is checked before memory is taken for it, and no code in it is ever run: of
pickles only what torch's weights-only reader takes is opened. Which network the tensors belong to,
and what their values may be, is not asked here.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repmamba.errors import CheckpointError, MissingExtra

# Limits in bytes and names. A network of six groups has 3.4 MB and 1102 names.
LARGEST_FILE = 1 << 30
LARGEST_HEADER = 4 << 20
LARGEST_PICKLE = 8 << 20
MOST_NAMES = 100_000

# types in safetensors files that are read: floating point for weights, I64 for counts
DTYPES = ("F16", "BF16", "F32", "F64", "I64")


@dataclass(frozen=True)
class WeightFile:
    """What a file declares, and the way to its tensors.

    shapes: of each tensor, by name.  metadata: what a safetensors file says beside them.
    form: in words, what kind of file it is.  load: the tensors; memory is taken when it is called.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, Any]
    form: str
    load: Callable[[], Mapping[str, Tensor]]


def open_weights(file: Path) -> WeightFile:
    """A file of weights by its first bytes, whatever its name. Raises CheckpointError."""
    try:
        return _open_pytorch(file) if _kind(file) == "pytorch" else _open_safetensors(file)
    except OSError as failure:
        raise CheckpointError(f"{file} cannot be read: {failure.strerror or failure}.") from failure


def read_json(file: Path) -> Mapping[str, Any]:
    """The object in a small JSON file; empty where there is none. Raises CheckpointError."""
    if not file.is_file():
        return {}
    if file.stat().st_size > LARGEST_HEADER:
        raise CheckpointError(
            f"{file} has {file.stat().st_size} bytes; a configuration is far smaller."
        )
    return json_object(file.read_bytes(), str(file))


def json_object(text: bytes | str, origin: str) -> dict[str, Any]:
    """A JSON object without a name twice and without NaN. Raises CheckpointError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(
                name for name, count in Counter(name for name, _ in pairs).items() if count > 1
            )
            raise CheckpointError(
                f"{origin} has the name {twice!r:.80} twice; save or download it again."
            )
        return result

    def no_constant(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        result = json.loads(text, object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as failure:
        if isinstance(failure, CheckpointError):
            raise
        raise CheckpointError(f"{origin} is corrupt: its JSON text cannot be read.") from failure
    if not isinstance(result, dict):
        raise CheckpointError(f"{origin} is corrupt: its JSON text is no object.")
    return result


def _kind(file: Path) -> str:
    """ "safetensors" or "pytorch", by the first bytes and not by the name. Raises CheckpointError,
    OSError.
    """
    if not file.exists():
        raise CheckpointError(f"{file} does not exist; weights are expected there.")
    if not file.is_file():
        raise CheckpointError(
            f"{file} is no regular file; weights are read from regular files and folders only."
        )
    size = file.stat().st_size
    if size == 0:
        raise CheckpointError(f"{file} is empty; save or download it again.")
    if size > LARGEST_FILE:
        raise CheckpointError(
            f"{file} has {size} bytes; no checkpoint of this network is larger than {LARGEST_FILE}."
        )
    with file.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(b"PK\x03\x04"):
        return "pytorch"
    if len(start) == 9 and start[8:] == b"{":
        return "safetensors"
    if start.startswith(b"\x80"):
        raise CheckpointError(
            f"{file} is a pickle of a PyTorch before 1.6, which is not opened here; "
            "load it with PyTorch, if you trust it, and save its state dict again."
        )
    raise CheckpointError(f"{file} is neither a safetensors file nor one that PyTorch has saved.")


def _open_safetensors(file: Path) -> WeightFile:
    header = _read_header(file)
    metadata = header.pop("__metadata__", {})
    if len(header) > MOST_NAMES:
        raise CheckpointError(f"{file} has {len(header)} names; at most {MOST_NAMES} are read.")
    with _safetensors_errors(file):
        from safetensors import safe_open

        with safe_open(file, "pt"):  # checks types, shapes and offsets against each other
            pass
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{file} has {name!r:.80} of type {entry['dtype']}; expected {', '.join(DTYPES)}."
            )
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    return WeightFile(shapes, metadata, "safetensors", lambda: _load_safetensors(file))


def _load_safetensors(file: Path) -> Mapping[str, Tensor]:
    with _safetensors_errors(file):
        from safetensors.torch import load

        return load(file.read_bytes())


def _read_header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: it may be large or name a tensor twice, so ours reads it.

    safetensors itself allows headers of 100 MB and takes the last of two entries of one name.
    """
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > LARGEST_HEADER:
            raise CheckpointError(
                f"{file} declares a header of {size} bytes; at most {LARGEST_HEADER} are read."
            )
        text = stream.read(size)
    if len(text) < size:
        raise CheckpointError(
            f"{file} is truncated: it ends inside its header; save or download it again."
        )
    return json_object(text, str(file))


@contextmanager
def _safetensors_errors(file: Path) -> Iterator[None]:
    """Turn errors of safetensors into CheckpointError, and its absence into MissingExtra."""
    try:
        yield
    except ImportError as missing:
        raise MissingExtra(
            "Reading .safetensors needs safetensors: pip install safetensors."
        ) from missing
    except Exception as failure:
        if type(failure).__name__ != "SafetensorError":
            raise
        reason = " ".join(str(failure).split())
        raise CheckpointError(
            f"{file} is truncated or corrupt ({reason:.200}); save or download it again."
        ) from failure


def _open_pytorch(file: Path) -> WeightFile:
    _check_zip(file)
    content = _load_mapped(file)
    form = "state dict"
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        epoch = content.get("epoch")
        form = "training state" + (f" of epoch {epoch}" if type(epoch) is int else "")
        content = content["state_dict"]
    tensors = dict(_tensors(content, file))
    return WeightFile(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, {}, form, lambda: tensors
    )


def _check_zip(file: Path) -> None:
    """Refuse whatever PyTorch does not write: members that are compressed, or together larger than
    the file.
    """
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as failure:
        raise CheckpointError(
            f"{file} is truncated or corrupt; save or download it again."
        ) from failure
    if len(members) > MOST_NAMES:
        raise CheckpointError(f"{file} has {len(members)} parts; at most {MOST_NAMES} are read.")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise CheckpointError(
            f"{file} has parts of the same name; PyTorch does not write such files."
        )
    if any(
        member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size
        for member in members
    ):
        raise CheckpointError(f"{file} is compressed inside; PyTorch does not write such files.")
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(
            f"{file} declares parts larger than itself; it is truncated or corrupt."
        )
    pickles = [member for member in members if member.filename.endswith(".pkl")]
    if not pickles:
        raise CheckpointError(f"{file} is a zip archive, but none that PyTorch has saved.")
    if any(member.file_size > LARGEST_PICKLE for member in pickles):
        raise CheckpointError(
            f"{file} has an index of more than {LARGEST_PICKLE} bytes; ours are far smaller."
        )


def _load_mapped(file: Path) -> object:
    """The content of a file that PyTorch has saved, its tensors views of the file itself.

    Mapped, nothing is read but the index: names and shapes are known before memory is taken for any
    tensor.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as failure:
        # torch's unpickler raises many kinds, UnpicklingError for code among them; its advice to
        # allow that is no help.
        if "weights_only" in str(failure) or "Unsupported" in str(failure):
            raise CheckpointError(
                f"{file} holds more than weights: opening it would run code it carries, which is "
                "never done here."
            ) from failure
        raise CheckpointError(f"{file} is corrupt: its weights cannot be read.") from failure


def _tensors(content: object, file: Path) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{file} holds no state dict; a dictionary of named tensors is expected."
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{file} holds no state dict: under {name!r:.80} is a {type(tensor).__name__}, no "
                "tensor."
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{file} has {name!r:.80} in a form (sparse, quantised) that no network has."
            )
        yield name, tensor
