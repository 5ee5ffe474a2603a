"""Checkpoints: a network's configuration and weights, written atomically and read safely.

Our form is one safetensors file, or `model.safetensors` in a folder with a readable `config.json`.
Its header has the configuration, scale, value range, training facts, origin and format version. All
published forms can be read too (published.py). weight_files.py opens files: names, shapes, types
and sizes are checked before memory is allocated, values after. Anything else is a one-line
CheckpointError.

This does not use the hub's mixin: it would make every import of the network load the hub, and
neither it nor safetensors checks all that a file from the internet may contain, such as names given
twice or NaN.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repmamba import __version__
from repmamba.durable import FULL, check_local, readable, write_durable
from repmamba.errors import CheckpointError, MissingExtra, NoSpace, TargetError, UsageError
from repmamba.network.config import NetworkConfig
from repmamba.network.model_card import NAME as CARD
from repmamba.network.model_card import card, is_ours_to_write
from repmamba.network.published import (
    COUNT,
    blank_network,
    check_names_and_shapes,
    difference,
    expected_shapes,
    from_published,
    published_names,
    read_config,
)
from repmamba.network.repmamba import RepMamba
from repmamba.network.weight_files import WeightFile, json_object, open_weights, read_json

# version of our form; later ones are refused. A change that old readers would misread raises it
FORMAT = 1

METADATA = "repmamba"  # our entry of the safetensors metadata: JSON text

# names of the weights in a folder, ours and the published, in the order in which they are tried
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")

# endings of files of weights; a single one in a folder may have any name
WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")

EXPORTED_ENDINGS = (".onnx", ".pt2")  # endings of exported networks
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # a repository of the Hugging Face hub: owner/name

# last parts of names that float16 storage keeps in float32, as all vectors: the scan exponentiates
# them
KEPT_IN_FLOAT32 = ("A_log", "dt_weight", "dt_bias", "x_proj")


def _compute_alone() -> None:
    """Use one torch thread in a forked process, where those of the parent are missing."""
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)


@dataclass(frozen=True)
class Checkpoint:
    """A network at rest.

    config: the configuration.
    weights: the state under our names, float32 (counts int64), on the CPU.
    origin: where the weights come from, one line for the user.
    training: facts of the training, JSON values.
    value_range: values of black and white in the network's input and output.
    """

    config: NetworkConfig
    weights: Mapping[str, Tensor]
    origin: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    value_range: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(
        cls, network: RepMamba, *, origin: str = "", training: Mapping[str, Any] | None = None
    ) -> "Checkpoint":
        """The configuration and a copy of the weights of a network."""
        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()
        }
        return cls(network.config, weights, origin, training or {})

    def network(self) -> RepMamba:
        """The network with these weights, in evaluation mode, float32 on the CPU.

        Raises CheckpointError.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        check_names_and_shapes(
            shapes,
            expected_shapes(self.config),
            origin=self.origin or "The checkpoint",
            network=_words(self.config),
        )
        network = blank_network(self.config)
        # After the check only batch counts can be missing; they stay 0.
        network.load_state_dict(dict(self.weights), strict=False)
        return network.eval()


def read_checkpoint(
    path: str | os.PathLike[str], *, expected: NetworkConfig | None = None
) -> Checkpoint:
    """Read a checkpoint from a file or folder, in our form or any published one.

    expected: if given, another configuration is refused, with the difference. No code in the file
    is ever run. Raises CheckpointError.
    """
    path = Path(path)
    file = _weights_in(path) if path.is_dir() else path
    beside = read_json(path / "config.json") if path.is_dir() else {}
    opened = open_weights(file)
    checkpoint = (
        _ours(opened, file) if METADATA in opened.metadata else _published(opened, beside, file)
    )
    if expected is not None and (reason := difference(checkpoint.config, expected)):
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
        wanted = expected_shapes(expected)
        check_names_and_shapes(
            shapes, wanted, origin=str(file), network=_words(expected), reason=reason
        )
        raise CheckpointError(f"{file} does not fit {_words(expected)}. {reason}.")
    return checkpoint


def write_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, *, storage: str = "float32"
) -> Path:
    """Write a checkpoint in our form, replacing an old one atomically; returns the weights' path.

    path: A name ending in .safetensors for one file; anything else is a folder, created if needed,
      with model.safetensors and config.json.
    checkpoint: What to write. The same checkpoint gives the same bytes.
    storage: "float32" is exact. "float16" halves the file; vectors and the parameters of the scan
      stay float32. It is read back as float32.
    Raises CheckpointError: values that are not finite, or too large for the storage; TargetError:
    the file cannot be written; NoSpace: the disk is full.
    """
    if storage not in ("float32", "float16"):
        raise UsageError(f"storage is {storage!r}; expected float32 or float16.")
    path = Path(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    check_names_and_shapes(
        shapes,
        expected_shapes(checkpoint.config),
        origin="The checkpoint",
        network=_words(checkpoint.config),
    )
    stored = {name: _stored(name, tensor, storage) for name, tensor in checkpoint.weights.items()}
    _check_values(stored, "The checkpoint to be written")
    facts = _facts(checkpoint)
    if path.suffix == ".safetensors":
        _write(path, _safetensors_bytes(stored, facts))
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise TargetError(f"The folder {path} cannot be created: {failure.strerror}.") from failure
    # The weights contain all facts and are written last: if this is interrupted, the folder is
    # complete or has no weights.
    _write(path / "config.json", json.dumps(facts, indent=2, sort_keys=True).encode())
    _write(path / WEIGHTS_NAMES[0], _safetensors_bytes(stored, facts))
    return path / WEIGHTS_NAMES[0]


def save_pretrained(
    network: RepMamba,
    folder: str | os.PathLike[str],
    *,
    origin: str = "",
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network as a folder for `from_pretrained` and for upload to the Hugging Face hub.

    Also writes a model card, README.md, unless you have edited the one that is there.

    Args:
        network: A RepMamba.
        folder: Where to write; created if needed.
        origin: What the weights are, in a line.
        training: Facts as JSON values, also for the card. "terms" are the terms of the weights,
            which results repeat.

    Returns:
        The folder.

    Raises:
        UsageError: An argument that is not allowed.
        CheckpointError: Values that are not finite.
        TargetError: The folder cannot be written.
        NoSpace: The disk is full.
    """
    if not isinstance(network, RepMamba):
        raise UsageError(f"network is a {type(network).__name__}; expected a RepMamba.")
    check_local(folder)
    checkpoint = Checkpoint.of(network, origin=origin, training=training)
    place = Path(folder)
    write_checkpoint(place, checkpoint)
    if is_ours_to_write(place):
        text = card(place.resolve().name, checkpoint.config, checkpoint.origin, checkpoint.training)
        _write(place / CARD, text.encode())
    return place


def from_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> RepMamba:
    """Load a network from a file, a folder or a Hugging Face repository (owner/name).

    A file or folder that exists is never looked up on the hub, so that it opens offline. revision:
    branch, tag or commit of the repository. local_files_only: only use files cached on this
    machine. Raises CheckpointError, UsageError, MissingExtra.
    """
    if Path(source).exists():
        if revision is not None:
            raise UsageError(
                f"{source} is a local file and has no revision '{revision}': leave it out."
            )
        return read_checkpoint(source).network()
    name = os.fspath(source)
    if not is_hub_name(name):
        raise CheckpointError(
            f"{name} is neither a file or folder nor a hub repository (owner/name)."
        )
    return read_checkpoint(
        fetch(name, revision=revision, local_files_only=local_files_only)
    ).network()


def is_hub_name(text: str) -> bool:
    """Whether a text looks like a Hugging Face repository, owner/name, and not like a file."""
    return HUB_NAME.fullmatch(text) is not None and not text.endswith(
        WEIGHTS_ENDINGS + EXPORTED_ENDINGS
    )


def fetch(name: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Download a hub repository's configuration and weights, if needed; returns the folder.

    Nothing else is downloaded. revision: branch, tag or commit. local_files_only: only use the
    cache on this machine. Raises CheckpointError, MissingExtra.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as missing:
        raise MissingExtra(
            "Weights of the hub need huggingface_hub: pip install huggingface_hub."
        ) from missing
    for weights in WEIGHTS_NAMES:
        wanted = ["config.json", weights]
        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=wanted,
                    local_files_only=local_files_only,
                )
            )
        except Exception as failure:  # the hub's client raises errors of several libraries
            reason = next(iter(str(failure).splitlines()), "no reason given").rstrip(".: ")
            raise CheckpointError(
                f"{name} could not be downloaded from the hub ({type(failure).__name__}: "
                f"{reason}). Check name, revision and connection, or download the weights and name "
                "their file."
            ) from failure
        if (folder / weights).is_file():
            return folder
    raise CheckpointError(
        f"The hub repository {name} has neither {' nor '.join(WEIGHTS_NAMES)}. If its weights have "
        "another name, download them and name their file."
    )


def _weights_in(folder: Path) -> Path:
    """The weights in a folder by their usual name, or the only file of weights."""
    for name in WEIGHTS_NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(
        path for path in folder.iterdir() if path.name.endswith(WEIGHTS_ENDINGS) and path.is_file()
    )
    if len(others) == 1:
        return others[0]
    if others:
        some = ", ".join(path.name for path in others[:3]) + ", ..." * (len(others) > 3)
        raise CheckpointError(
            f"{folder} has {len(others)} files of weights: {some}. Name one of them."
        )
    raise CheckpointError(f"{folder} has no weights: neither {' nor '.join(WEIGHTS_NAMES)}.")


def _described(text: object, file: Path) -> Checkpoint:
    """Our metadata as a checkpoint still without weights."""
    if not isinstance(text, str):
        raise CheckpointError(f"{file} is corrupt: its metadata is not text.")
    facts = json_object(text, f"The metadata of {file}")
    version = facts.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{file} is corrupt: its format version is {version!r:.40}.")
    if version > FORMAT:
        raise CheckpointError(
            f"{file} has format version {version}, but this repmamba reads up to {FORMAT}; install "
            "a newer repmamba."
        )
    try:
        config = NetworkConfig.from_dict(dict(facts["config"]))
        low, high = (float(value) for value in facts["value_range"])
        training = dict(facts.get("training", {}))
    except UsageError as refused:
        raise CheckpointError(f"{file} describes an impossible network: {refused}") from refused
    except (KeyError, TypeError, ValueError, OverflowError) as failure:
        raise CheckpointError(
            f"{file} is corrupt: its metadata has no valid config, value_range or training."
        ) from failure
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
        raise CheckpointError(
            f"The training facts cannot be written as JSON: {failure}."
        ) from failure
    return facts


def _safetensors_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as missing:
        raise MissingExtra(
            "Writing weights needs safetensors: pip install safetensors."
        ) from missing
    # A single entry: safetensors orders several arbitrarily, and equal checkpoints would differ.
    return save(dict(tensors), {METADATA: json.dumps(facts, sort_keys=True, allow_nan=False)})


def _stored(name: str, tensor: Tensor, storage: str) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point():
        return tensor
    half = (
        storage == "float16" and tensor.dim() > 1 and name.rsplit(".", 1)[-1] not in KEPT_IN_FLOAT32
    )
    return tensor.to(torch.float16 if half else torch.float32)


def _ours(opened: WeightFile, file: Path) -> Checkpoint:
    described = _described(opened.metadata[METADATA], file)
    expected = expected_shapes(described.config)
    check_names_and_shapes(
        opened.shapes, expected, origin=str(file), network=_words(described.config)
    )
    return _finished(described, opened.load(), file)


def _published(opened: WeightFile, beside: Mapping[str, Any], file: Path) -> Checkpoint:
    """A checkpoint under published names. beside: config.json, if there is one."""
    plain = {name: name.removeprefix("module.") for name in opened.shapes}
    if len(set(plain.values())) != len(plain):
        raise CheckpointError(
            f"{file} has a name both with and without `module.`; save it again with one of them."
        )
    found = {plain[name]: shape for name, shape in opened.shapes.items()}
    config = read_config(found, img_range=_img_range(beside, file))
    upscale = beside.get("upscale")
    if type(upscale) is int and upscale != config.scale and config.upsampler != "none":
        raise CheckpointError(
            f"config.json says upscale {upscale}, but {file} is an x{config.scale} checkpoint. One "
            "of the two belongs to another network."
        )
    ours = published_names(config)
    expected = {ours[name]: shape for name, shape in expected_shapes(config).items()}
    check_names_and_shapes(found, expected, origin=str(file), network=_words(config))
    weights = from_published(
        config, {plain[name]: tensor for name, tensor in opened.load().items()}
    )
    return _finished(Checkpoint(config, {}, f"published {opened.form}, {file.name}"), weights, file)


def _img_range(beside: Mapping[str, Any], file: Path) -> float:
    img_range = beside.get("img_range", 1.0)
    if type(img_range) not in (int, float) or not 0 < img_range < math.inf:
        raise CheckpointError(
            f"config.json beside {file} says img_range {img_range!r:.40}; expected a number above "
            "0."
        )
    return float(img_range)


def _finished(described: Checkpoint, weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """The checkpoint with its own float32 copy of the weights, their values checked."""
    own = {}
    for name, tensor in weights.items():
        count = name.endswith(COUNT)
        if tensor.is_floating_point() == count or tensor.is_complex():
            raise CheckpointError(
                f"{file} has {name} as {tensor.dtype}; expected floating point for weights, int64 "
                "for counts."
            )
        own[name] = (
            tensor.detach().to(torch.int64 if count else torch.float32, copy=True).contiguous()
        )
    _check_values(own, str(file))
    for name, shape in expected_shapes(described.config).items():
        if name not in own:  # a batch count: the check of names allows nothing else to be missing
            own[name] = torch.zeros(shape, dtype=torch.int64)
    return Checkpoint(
        described.config, own, described.origin, described.training, described.value_range
    )


def _check_values(weights: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in weights.items():
        # with NumPy: torch would start its threads for each of a thousand tensors
        if not np.isfinite(tensor.numpy()).all():
            raise CheckpointError(
                f"{origin} has NaN or infinite values in {name} and cannot be used."
            )
        if name.endswith("running_var") and (tensor < 0).any():
            raise CheckpointError(f"{origin} has a negative variance in {name}; it is corrupt.")


def _words(config: NetworkConfig) -> str:
    return (
        f"the x{config.scale} network ({config.upsampler}, {config.resi_connection}, "
        f"{config.in_chans} bands)"
    )


def _write(path: Path, content: bytes) -> None:
    try:
        write_durable(path, content)
    except OSError as failure:
        if failure.errno in FULL:
            raise NoSpace(
                f"No space left for {path} ({readable(len(content))}): {failure.strerror}."
            ) from failure
        raise TargetError(f"{path} cannot be written: {failure.strerror or failure}.") from failure
