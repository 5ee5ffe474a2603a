"""Checkpoints: a network's configuration and weights, written whole, and read without running anything in them.

Ours is one safetensors file, alone or as `model.safetensors` in a folder with a readable `config.json` beside it. Its
header carries the configuration, scale, value range, training facts, origin and format version. Every published form
is read too (published.py). Names, shapes, types and sizes are checked before memory is taken, values after; whatever
cannot be used is a CheckpointError of one line.

Written here rather than with the hub's mixin, because that would make every import of the network load the hub, and
because neither it nor safetensors looks at what a stranger's file may hold: names twice, shapes of 2^60, NaN.
"""

import errno
import json
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repmamba import __version__
from repmamba.errors import CheckpointError, MissingExtra, NoSpace, TargetError, UsageError
from repmamba.network.config import NetworkConfig
from repmamba.network.published import (
    COUNT,
    blank_network,
    check_names_and_shapes,
    difference,
    expected_shapes,
    published_names,
    read_config,
)
from repmamba.network.repmamba import RepMamba

FORMAT = 1
"""Version of our form. A reader refuses a later one; a change that an old reader would misread raises it."""

METADATA = "repmamba"
"""The one entry of the safetensors metadata that is ours: JSON text."""

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in a folder, ours and the published, in the order in which they are looked for."""

LARGEST_FILE = 1 << 30
LARGEST_HEADER = 4 << 20
LARGEST_PICKLE = 8 << 20
MOST_ENTRIES = 100_000
"""Bounds on a stranger's file, in bytes and names. A network of six groups has 3.4 MB and 1102 names."""

DTYPES = {  # of safetensors -> bytes each; floating point first, counts last
    "F16": 2,
    "BF16": 2,
    "F32": 4,
    "F64": 8,
    "I64": 8,
}

KEPT_IN_FLOAT32 = ("A_log", "dt_weight", "dt_bias", "x_proj")
"""Last parts of the names that float16 storage leaves alone, beside all vectors: the scan raises e to their power."""


@dataclass(frozen=True)
class Checkpoint:
    """A network at rest.

    config: what to build.  weights: its state under our names, float32 (counts int64), on the CPU.
    origin: where the weights come from, one line for the user.  training: facts of their training, JSON values.
    value_range: what the network takes and gives for black and white.
    """

    config: NetworkConfig
    weights: Mapping[str, Tensor]
    origin: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    value_range: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, network: RepMamba, *, origin: str = "", training: Mapping[str, Any] | None = None) -> "Checkpoint":
        """A network's configuration and a copy of its weights."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        return cls(network.config, weights, origin, training or {})

    def network(self) -> RepMamba:
        """The network with these weights, in evaluation mode, float32 on the CPU. Raises CheckpointError."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        check_names_and_shapes(
            shapes, expected_shapes(self.config), origin=self.origin or "The checkpoint", network=_words(self.config)
        )
        network = blank_network(self.config)
        # The only names that may be missing after the check are batch counts, which stay 0.
        network.load_state_dict(dict(self.weights), strict=False)
        return network.eval()


def read_checkpoint(path: str | os.PathLike[str], *, expected: NetworkConfig | None = None) -> Checkpoint:
    """The checkpoint in a file or folder: ours, or the published in any of its forms.

    expected: what the caller is going to build, where it knows that; a checkpoint of another kind is then refused, and
    the error says of which. No code that a file carries is ever run. Raises CheckpointError.
    """
    path = Path(path)
    beside: Mapping[str, Any] = {}
    file = path
    if path.is_dir():
        file = _weights_in(path)
        beside = _read_json(path / "config.json")
    try:
        kind = _kind(file)
        checkpoint = _read_safetensors(file, beside) if kind == "safetensors" else _read_pytorch(file, beside)
    except OSError as failure:
        raise CheckpointError(f"{file} cannot be read: {failure.strerror or failure}.") from failure
    if expected is not None and (reason := difference(checkpoint.config, expected)):
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
        wanted = expected_shapes(expected)
        check_names_and_shapes(shapes, wanted, origin=str(file), network=_words(expected), reason=reason)
        raise CheckpointError(f"{file} does not fit {_words(expected)}. {reason}.")
    return checkpoint


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, *, storage: str = "float32") -> Path:
    """Write a checkpoint in our form; the name appears when the file is whole, and then replaces one of that name.

    path: a name ending in .safetensors for one file; any other is a folder, made if need be, of model.safetensors and
    config.json.  storage: "float32" is exact; "float16" halves the file, keeps vectors and what steers the scan in
    float32, and is read back as float32. The same checkpoint gives the same bytes. Returns the path of the weights.
    Raises CheckpointError for values that are not finite or too large for the storage, TargetError, NoSpace.
    """
    if storage not in ("float32", "float16"):
        raise UsageError(f"storage is {storage!r}; it must be float32 or float16.")
    path = Path(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    check_names_and_shapes(
        shapes, expected_shapes(checkpoint.config), origin="The checkpoint", network=_words(checkpoint.config)
    )
    stored = {name: _stored(name, tensor, storage) for name, tensor in checkpoint.weights.items()}
    _check_values(stored, "The checkpoint to be written")
    facts = _facts(checkpoint)
    if path.suffix == ".safetensors":
        _write_atomically(path, _safetensors_bytes(stored, facts))
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise TargetError(f"The folder {path} cannot be made: {failure.strerror}.") from failure
    # The weights carry all facts themselves and come last: whatever stops this, the folder is whole or has no weights.
    _write_atomically(path / "config.json", json.dumps(facts, indent=2, sort_keys=True).encode())
    _write_atomically(path / WEIGHTS_NAMES[0], _safetensors_bytes(stored, facts))
    return path / WEIGHTS_NAMES[0]


def save_pretrained(
    network: RepMamba,
    folder: str | os.PathLike[str],
    *,
    origin: str = "",
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network as a folder that `from_pretrained` opens and that can be uploaded to the hub as it is."""
    write_checkpoint(Path(folder), Checkpoint.of(network, origin=origin, training=training))
    return Path(folder)


def from_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> RepMamba:
    """The network in a folder or file, or of a repository of the Hugging Face hub named owner/name.

    A folder or file that exists is never asked of the hub, so that it opens offline. revision: branch, tag or commit.
    local_files_only: take the hub's files from its cache on this machine alone. Raises CheckpointError, MissingExtra.
    """
    if Path(source).exists():
        return read_checkpoint(source).network()
    name = os.fspath(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).suffix in (".pth", ".safetensors"):
        raise CheckpointError(f"{name} is no file or folder, and no name of a hub repository (owner/name) either.")
    return read_checkpoint(_fetch(name, revision, local_files_only)).network()


def _fetch(name: str, revision: str | None, local_files_only: bool) -> Path:
    """The folder of a hub repository's configuration and weights on this machine, downloaded if need be."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as missing:
        raise MissingExtra("Weights of the hub need huggingface_hub: pip install huggingface_hub.") from missing
    for weights in WEIGHTS_NAMES:
        wanted = ["config.json", weights]
        try:
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=local_files_only)
            )
        except (OSError, HFValidationError) as failure:  # the hub's own errors are OSErrors
            first_line = next(iter(str(failure).splitlines()), type(failure).__name__)
            raise CheckpointError(f"{name} could not be had from the hub: {first_line}") from failure
        if (folder / weights).is_file():
            return folder
    raise CheckpointError(f"The hub repository {name} has no weights: neither {' nor '.join(WEIGHTS_NAMES)}.")


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} is a folder without weights: neither {' nor '.join(WEIGHTS_NAMES)} is in it.")


def _kind(file: Path) -> str:
    """ "safetensors" or "pytorch", by the first bytes and not by the name. Raises CheckpointError, OSError."""
    if not file.exists():
        raise CheckpointError(f"{file} does not exist; weights are expected there.")
    if not file.is_file():
        raise CheckpointError(f"{file} is no regular file; weights are read from regular files and folders only.")
    size = file.stat().st_size
    if size == 0:
        raise CheckpointError(f"{file} is empty; save or download it again.")
    if size > LARGEST_FILE:
        raise CheckpointError(f"{file} has {size} bytes; no checkpoint of this network is larger than {LARGEST_FILE}.")
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


def _read_json(file: Path) -> Mapping[str, Any]:
    """The object in a small JSON file; empty where there is none. Raises CheckpointError."""
    if not file.is_file():
        return {}
    if file.stat().st_size > LARGEST_HEADER:
        raise CheckpointError(f"{file} has {file.stat().st_size} bytes; a configuration is far smaller.")
    return _json_object(file.read_bytes(), str(file))


def _json_object(text: bytes | str, origin: str) -> dict[str, Any]:
    """A JSON object without a name twice and without NaN. Raises CheckpointError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{origin} has the name {twice!r:.80} twice; save or download it again.")
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


def _read_safetensors(file: Path, beside: Mapping[str, Any]) -> Checkpoint:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as missing:
        raise MissingExtra("Reading .safetensors needs safetensors: pip install safetensors.") from missing
    with file.open("rb") as stream:
        header, start = _read_header(stream.read, file)
        metadata = header.pop("__metadata__", {})
        shapes = _check_header(header, file, file.stat().st_size - len(start))
        if isinstance(metadata, dict) and METADATA in metadata:
            described = _described(metadata[METADATA], file)
            check_names_and_shapes(
                shapes, expected_shapes(described.config), origin=str(file), network=_words(described.config)
            )
            names = {name: name for name in shapes}
        else:
            described, names = _published(shapes, beside, file, "published form")
        data = start + stream.read()
    try:
        tensors = load(data)
    except SafetensorError as failure:
        raise CheckpointError(f"{file} is corrupt: {failure}.") from failure
    weights = {names[name]: tensor for name, tensor in tensors.items()}
    return _finished(described, weights, file)


def _read_header(read: Callable[[int], bytes], file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes read so far."""
    length = read(8)
    size = int.from_bytes(length, "little")
    if size > LARGEST_HEADER:
        raise CheckpointError(f"{file} declares a header of {size} bytes; at most {LARGEST_HEADER} are read.")
    text = read(size)
    if len(text) < size:
        raise CheckpointError(f"{file} is truncated: it ends inside its header; save or download it again.")
    return _json_object(text, str(file)), length + text


def _check_header(header: Mapping[str, Any], file: Path, available: int) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, when every entry is well formed and together they cover the data exactly.

    available: bytes of the file after the header. Raises CheckpointError.
    """
    if len(header) > MOST_ENTRIES:
        raise CheckpointError(f"{file} has {len(header)} names; at most {MOST_ENTRIES} are read.")
    shapes = {}
    spans = []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, end]
        except (TypeError, KeyError, ValueError):
            raise CheckpointError(f"{file} is corrupt: the entry {name!r:.80} of its header is malformed.") from None
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise CheckpointError(f"{file} has {name!r:.80} of type {dtype!r:.20}; weights are {', '.join(DTYPES)}.")
        if any(type(number) is not int or not 0 <= number <= LARGEST_FILE for number in numbers):
            raise CheckpointError(f"{file} declares {name!r:.80} of shape {shape!r:.80}, larger than any of ours.")
        if len(shape) > 8 or end - begin != math.prod(shape) * DTYPES[dtype]:
            raise CheckpointError(f"{file} is corrupt: the size of {name!r:.80} is not that of its shape.")
        shapes[name] = tuple(shape)
        spans.append((begin, end))
    covered = 0
    for begin, end in sorted(spans):
        if begin != covered:
            raise CheckpointError(f"{file} is corrupt: its tensors overlap or leave gaps.")
        covered = end
    if covered > available:
        raise CheckpointError(
            f"{file} is truncated: {available} of {covered} bytes of weights are there; save or download it again."
        )
    if covered < available:
        raise CheckpointError(f"{file} is corrupt: {available - covered} bytes follow the last tensor.")
    return shapes


def _described(text: object, file: Path) -> Checkpoint:
    """What our metadata says, as a checkpoint whose weights are still to come."""
    if not isinstance(text, str):
        raise CheckpointError(f"{file} is corrupt: its metadata is no text.")
    facts = _json_object(text, f"The metadata of {file}")
    version = facts.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{file} is corrupt: its format version is {version!r:.40}.")
    if version > FORMAT:
        raise CheckpointError(
            f"{file} is of format version {version}, and this repmamba reads up to {FORMAT}; install a newer repmamba."
        )
    try:
        config = NetworkConfig.from_dict(facts["config"])
        low, high = (float(value) for value in facts["value_range"])
        training = dict(facts.get("training", {}))
    except UsageError as refused:
        raise CheckpointError(f"{file} describes a network that there is not: {refused}") from refused
    except (KeyError, TypeError, ValueError, OverflowError) as failure:
        raise CheckpointError(f"{file} is corrupt: its metadata lacks config, value_range or training.") from failure
    return Checkpoint(config, {}, str(facts.get("origin", "")), training, (low, high))


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    facts = {
        "format_version": FORMAT,
        "config": checkpoint.config.to_dict(),
        "scale": checkpoint.config.scale,
        "value_range": list(checkpoint.value_range),
        "training": dict(checkpoint.training),
        "origin": checkpoint.origin,
        "written_by": f"repmamba {__version__}",
    }
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as failure:
        raise CheckpointError(f"The training facts cannot be written as JSON: {failure}.") from failure
    return facts


def _safetensors_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as missing:
        raise MissingExtra("Writing weights needs safetensors: pip install safetensors.") from missing
    # One entry only: safetensors writes several in an order of their own, and equal checkpoints would differ.
    return save(dict(tensors), {METADATA: json.dumps(facts, sort_keys=True, allow_nan=False)})


def _stored(name: str, tensor: Tensor, storage: str) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    half = storage == "float16" and tensor.dim() > 1 and name.rsplit(".", 1)[-1] not in KEPT_IN_FLOAT32
    return tensor.to(torch.float16 if half else torch.float32)


def _read_pytorch(file: Path, beside: Mapping[str, Any]) -> Checkpoint:
    _check_zip(file)
    content = _load_mapped(file)
    origin = "published form"
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        epoch = content.get("epoch")
        origin = "published training state" + (f", epoch {epoch}" if type(epoch) is int else "")
        content = content["state_dict"]
    tensors = dict(_tensors(content, file))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    described, names = _published(shapes, beside, file, origin)
    return _finished(described, {names[name]: tensor for name, tensor in tensors.items()}, file)


def _check_zip(file: Path) -> None:
    """Refuse whatever PyTorch does not write: members that are compressed, or together larger than the file."""
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as failure:
        raise CheckpointError(f"{file} is truncated or corrupt; save or download it again.") from failure
    if len(members) > MOST_ENTRIES:
        raise CheckpointError(f"{file} has {len(members)} parts; at most {MOST_ENTRIES} are read.")
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise CheckpointError(f"{file} has parts of the same name; PyTorch does not write such files.")
    if any(
        member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size for member in members
    ):
        raise CheckpointError(f"{file} is compressed inside; PyTorch does not write such files.")
    if sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{file} declares parts larger than itself; it is truncated or corrupt.")
    pickles = [member for member in members if member.filename.endswith(".pkl")]
    if not pickles:
        raise CheckpointError(f"{file} is a zip archive, but none that PyTorch has saved.")
    if any(member.file_size > LARGEST_PICKLE for member in pickles):
        raise CheckpointError(f"{file} has an index of more than {LARGEST_PICKLE} bytes; ours are far smaller.")


def _load_mapped(file: Path) -> object:
    """The content of a file that PyTorch has saved, its tensors views of the file itself.

    Mapped, a tensor that declares more than its file holds is an error, where a read would take the memory first.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as failure:
        # torch's unpickler raises many kinds, UnpicklingError for code among them; its advice to allow that is no help.
        if "weights_only" in str(failure) or "Unsupported" in str(failure):
            raise CheckpointError(
                f"{file} holds more than weights: opening it would run code it carries, which is never done here."
            ) from failure
        raise CheckpointError(f"{file} is corrupt: its weights cannot be read.") from failure


def _tensors(content: object, file: Path) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file} holds no state dict; a dictionary of named tensors is expected.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{file} holds no state dict: under {name!r:.80} is a {type(tensor).__name__}, no tensor."
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{file} has {name!r:.80} in a form (sparse, quantised) that no network has.")
        yield name, tensor


def _published(
    shapes: Mapping[str, tuple[int, ...]], beside: Mapping[str, Any], file: Path, form: str
) -> tuple[Checkpoint, dict[str, str]]:
    """What the shapes of a published checkpoint say, and our name of each of its names."""
    plain = {name: name.removeprefix("module.") for name in shapes}
    if len(set(plain.values())) != len(plain):
        raise CheckpointError(f"{file} has the same name with and without `module.`; save it again with one.")
    found = {plain[name]: shape for name, shape in shapes.items()}
    config = read_config(found, img_range=_img_range(beside, file))
    upscale = beside.get("upscale")
    if type(upscale) is int and upscale != config.scale and config.upsampler != "none":
        raise CheckpointError(
            f"config.json says upscale {upscale}, but this is an x{config.scale} checkpoint: {file}. "
            "One of the two belongs to another network."
        )
    ours = published_names(config)
    expected = {ours[name]: shape for name, shape in expected_shapes(config).items()}
    check_names_and_shapes(found, expected, origin=str(file), network=_words(config))
    back = {published: name for name, published in ours.items()}
    described = Checkpoint(config, {}, f"{form}, {file.name}")
    return described, {name: back[stripped] for name, stripped in plain.items()}


def _img_range(beside: Mapping[str, Any], file: Path) -> float:
    img_range = beside.get("img_range", 1.0)
    if type(img_range) not in (int, float) or not 0 < img_range < math.inf:
        raise CheckpointError(f"config.json beside {file} says img_range {img_range!r:.40}; a number above 0 is due.")
    return float(img_range)


def _finished(described: Checkpoint, weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """The checkpoint with its weights in memory of their own, as float32, their values checked."""
    own = {}
    for name, tensor in weights.items():
        count = name.endswith(COUNT)
        if tensor.is_floating_point() == count or tensor.is_complex():
            raise CheckpointError(f"{file} has {name} as {tensor.dtype}; weights are floating point, counts int64.")
        own[name] = tensor.detach().to(torch.int64 if count else torch.float32, copy=True).contiguous()
    _check_values(own, str(file))
    for name, shape in expected_shapes(described.config).items():
        if name not in own:  # a batch count: nothing else passed the check of names
            own[name] = torch.zeros(shape, dtype=torch.int64)
    return Checkpoint(described.config, own, described.origin, described.training, described.value_range)


def _check_values(weights: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{origin} has values in {name} that are NaN or infinite; such weights are of no use."
            )
        if name.endswith("running_var") and (tensor < 0).any():
            raise CheckpointError(f"{origin} has a negative variance in {name}; it is corrupt.")


def _words(config: NetworkConfig) -> str:
    return f"the x{config.scale} network ({config.upsampler}, {config.resi_connection}, {config.in_chans} bands)"


def _write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name beside the path, make it durable, then give it its name."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            with partial.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _fsync_folder(path.parent)
    except OSError as failure:
        if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"No space left for {path} ({len(data)} bytes).") from failure
        raise TargetError(f"{path} cannot be written: {failure.strerror or failure}.") from failure


def _fsync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened, and a rename is durable by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
