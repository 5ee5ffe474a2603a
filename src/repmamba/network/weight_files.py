"""Files of named tensors from untrusted sources: safetensors, and files saved by PyTorch.

Everything that a file declares is checked before memory is allocated for it, and no code in it is
ever run: of pickles, only what torch's weights-only reader accepts. Which network the tensors
belong to, and their values, are checked elsewhere.
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

# types of tensors that are read: floating point for weights, I64 for counts
DTYPES = ("F16", "BF16", "F32", "F64", "I64")


@dataclass(frozen=True)
class WeightFile:
    """What a file declares, and a function to load its tensors.

    shapes: of each tensor, by name.
    metadata: of a safetensors file.
    form: description of the kind of file.
    load: reads the tensors; memory is allocated when it is called.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, Any]
    form: str
    load: Callable[[], Mapping[str, Tensor]]


def open_weights(file: Path) -> WeightFile:
    """Open a file of weights, its kind told by the first bytes. Raises CheckpointError."""
    try:
        return _open_pytorch(file) if _kind(file) == "pytorch" else _open_safetensors(file)
    except OSError as failure:
        raise CheckpointError(f"{file} cannot be read: {failure.strerror or failure}.") from failure


def read_json(file: Path) -> Mapping[str, Any]:
    """The object in a small JSON file; empty without a file. Raises CheckpointError."""
    if not file.is_file():
        return {}
    if file.stat().st_size > LARGEST_HEADER:
        raise CheckpointError(
            f"{file} has {file.stat().st_size} bytes; expected a configuration of at most "
            f"{LARGEST_HEADER}."
        )
    return json_object(file.read_bytes(), str(file))


def json_object(text: bytes | str, origin: str) -> dict[str, Any]:
    """Parse a JSON object, without duplicate names or NaN. Raises CheckpointError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
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
        raise CheckpointError(f"{origin} is corrupt: invalid JSON.") from failure
    if not isinstance(result, dict):
        raise CheckpointError(f"{origin} is corrupt: its JSON is not an object.")
    return result


def _kind(file: Path) -> str:
    """ "safetensors" or "pytorch", by the first bytes. Raises CheckpointError, OSError."""
    if not file.exists():
        raise CheckpointError(f"{file} does not exist; expected a file of weights.")
    if not file.is_file():
        raise CheckpointError(
            f"{file} is not a regular file; expected a file or folder of weights."
        )
    size = file.stat().st_size
    if size == 0:
        raise CheckpointError(f"{file} is empty; save or download it again.")
    if size > LARGEST_FILE:
        raise CheckpointError(
            f"{file} has {size} bytes; expected a checkpoint of at most {LARGEST_FILE}."
        )
    with file.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(b"PK\x03\x04"):
        return "pytorch"
    if len(start) == 9 and start[8:] == b"{":
        return "safetensors"
    if start.startswith(b"\x80"):
        raise CheckpointError(
            f"{file} is a pickle of PyTorch before 1.6, which is not opened here; if you trust it, "
            "load it with PyTorch and save its state dict again."
        )
    raise CheckpointError(f"{file} is neither a safetensors file nor one saved by PyTorch.")


def _open_safetensors(file: Path) -> WeightFile:
    header = _read_header(file)
    metadata = header.pop("__metadata__", {})
    if len(header) > MOST_NAMES:
        raise CheckpointError(f"{file} has {len(header)} names; at most {MOST_NAMES} are read.")
    with _safetensors_errors(file):
        from safetensors import safe_open

        with safe_open(file, "pt"):  # checks types, shapes and offsets
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
    """The header of a safetensors file.

    We read it ourselves because safetensors allows headers of 100 MB, and uses the last entry of a
    name that is given twice.
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
    """Turn errors of safetensors into CheckpointError, and a missing package into MissingExtra."""
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
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return WeightFile(shapes, {}, form, lambda: tensors)


def _check_zip(file: Path) -> None:
    """Refuse what PyTorch does not write: compressed members, or members larger than the file."""
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
        raise CheckpointError(f"{file} has duplicate parts; PyTorch does not write such files.")
    stored = zipfile.ZIP_STORED
    if any((one.compress_type, one.compress_size) != (stored, one.file_size) for one in members):
        raise CheckpointError(f"{file} has compressed parts; PyTorch does not write such files.")
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(
            f"{file} declares parts larger than itself; it is truncated or corrupt."
        )
    pickles = [member for member in members if member.filename.endswith(".pkl")]
    if not pickles:
        raise CheckpointError(f"{file} is a zip archive that PyTorch did not save.")
    if any(member.file_size > LARGEST_PICKLE for member in pickles):
        raise CheckpointError(f"{file} has an index of more than {LARGEST_PICKLE} bytes.")


def _load_mapped(file: Path) -> object:
    """The content of a file saved by PyTorch, its tensors mapped from the file.

    Mapping reads only the index: names and shapes are known before memory is allocated for a
    tensor.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as failure:
        # torch's unpickler raises many kinds of errors, UnpicklingError for code among them; its
        # advice to allow that must not reach the user.
        if "weights_only" in str(failure) or "Unsupported" in str(failure):
            raise CheckpointError(
                f"{file} contains more than weights: opening it would run code, which is never "
                "done here."
            ) from failure
        raise CheckpointError(f"{file} is corrupt: its weights cannot be read.") from failure


def _tensors(content: object, file: Path) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file} has no state dict; expected a dictionary of named tensors.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{file} has no state dict: {name!r:.80} is a {type(tensor).__name__}, not a "
                "tensor."
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{file} has {name!r:.80} in an unsupported form (sparse, quantised)."
            )
        yield name, tensor
