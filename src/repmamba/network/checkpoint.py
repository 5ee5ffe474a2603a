"""Checkpoints: a network's configuration and weights, written whole, and read without running
anything in them.

Ours is one safetensors file, alone or as `model.safetensors` in a folder with a readable
`config.json` beside it. Its header carries the configuration, scale, value range, training facts,
origin and format version. Every published form is read too (published.py). How files are opened is
in weight_files.py: names, shapes, types and sizes are checked before memory is taken, values after;
whatever cannot be used is a CheckpointError of one line.

Written here rather than with the hub's mixin, because that would make every import of the network
load the hub, and because neither it nor safetensors looks at what a stranger's file may hold: names
twice, shapes of 2^60, NaN.
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

FORMAT = 1
"""Version of our form. A reader refuses a later one; a change that an old reader would misread
raises it.
"""

METADATA = "repmamba"
"""The one entry of the safetensors metadata that is ours: JSON text."""

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in a folder, ours and the published, in the order in which they are
looked for.
"""

WEIGHTS_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
"""How the names of files of weights end. Alone in a folder, one is taken whatever its name."""

EXPORTED_ENDINGS = (".onnx", ".pt2")
"""How the names of exported networks end, which are none of weights."""

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""A repository of the Hugging Face hub: owner/name."""

KEPT_IN_FLOAT32 = ("A_log", "dt_weight", "dt_bias", "x_proj")
"""Last parts of the names that float16 storage leaves alone, beside all vectors: the scan raises e
to their power.
"""


def _compute_alone() -> None:
    """In a forked process: torch's threads stayed with its parent, and whatever asked for them
    would wait for ever.
    """
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compute_alone)


@dataclass(frozen=True)
class Checkpoint:
    """A network at rest.

    config: what to build.  weights: its state under our names, float32 (counts int64), on the CPU.
    origin: where the weights come from, one line for the user.  training: facts of their training,
    JSON values.
    value_range: what the network takes and gives for black and white.
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
        """A network's configuration and a copy of its weights."""
        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()
        }
        return cls(network.config, weights, origin, training or {})

    def network(self) -> RepMamba:
        """The network with these weights, in evaluation mode, float32 on the CPU. Raises
        CheckpointError.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        check_names_and_shapes(
            shapes,
            expected_shapes(self.config),
            origin=self.origin or "The checkpoint",
            network=_words(self.config),
        )
        network = blank_network(self.config)
        # The only names that may be missing after the check are batch counts, which stay 0.
        network.load_state_dict(dict(self.weights), strict=False)
        return network.eval()


def read_checkpoint(
    path: str | os.PathLike[str], *, expected: NetworkConfig | None = None
) -> Checkpoint:
    """The checkpoint in a file or folder: ours, or the published in any of its forms.

    expected: what the caller is going to build, where it knows that; a checkpoint of another kind
    is then refused, and the error says of which. No code that a file carries is ever run. Raises
    CheckpointError.
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
    """Write a checkpoint in our form; the name appears when the file is whole, and then replaces
    one of that name.

    path: a name ending in .safetensors for one file; any other is a folder, made if need be, of
    model.safetensors and
    config.json.  storage: "float32" is exact; "float16" halves the file, keeps vectors and what
    steers the scan in
    float32, and is read back as float32. The same checkpoint gives the same bytes. Returns the path
    of the weights. Raises CheckpointError for values that are not finite or too large for the
    storage, TargetError, NoSpace.
    """
    if storage not in ("float32", "float16"):
        raise UsageError(f"storage is {storage!r}; it must be float32 or float16.")
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
        raise TargetError(f"The folder {path} cannot be made: {failure.strerror}.") from failure
    # The weights carry all facts themselves and come last: whatever stops this, the folder is whole
    # or has no weights.
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
    """Write a network as a folder that `from_pretrained` opens and that can be uploaded to the hub
    as it is.

    With it goes a model card, README.md; one that you have changed stays. origin: what the weights
    are, in a line. training: facts as JSON holds them, for the card too; "terms" are those of the
    weights, which results repeat. Raises UsageError for what is no RepMamba, CheckpointError,
    TargetError, NoSpace.
    """
    if not isinstance(network, RepMamba):
        raise UsageError(
            f"network is a {type(network).__name__}; save_pretrained takes a RepMamba."
        )
    if not isinstance(origin, str) or not isinstance(training or {}, Mapping):
        raise UsageError(
            "origin is a line of text and training a dict of facts; one of them is something else."
        )
    _check_path("folder", folder)
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
    """The network in a folder or file, or of a repository of the Hugging Face hub named owner/name.

    A folder or file that exists is never asked of the hub, so that it opens offline. revision:
    branch, tag or commit of
    the repository.  local_files_only: take the hub's files from its cache on this machine alone.
    Raises CheckpointError, UsageError, MissingExtra.
    """
    _check_path("source", source)
    if revision is not None and not isinstance(revision, str):
        raise UsageError(f"revision is {revision!r:.80}; it takes a branch, a tag or a commit.")
    if Path(source).exists():
        if revision is not None:
            raise UsageError(f"{source} is here and has no revision '{revision}': leave it out.")
        return read_checkpoint(source).network()
    name = os.fspath(source)
    if not is_hub_name(name):
        raise CheckpointError(
            f"{name} is no file or folder, and no name of a hub repository (owner/name) either."
        )
    return read_checkpoint(
        fetch(name, revision=revision, local_files_only=local_files_only)
    ).network()


def _check_path(name: str, value: object) -> None:
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} is {value!r:.80}; it takes a path, as text or as a Path.")


def is_hub_name(text: str) -> bool:
    """Whether it reads as the name of a repository of the Hugging Face hub, owner/name, and not as
    that of a file.
    """
    return HUB_NAME.fullmatch(text) is not None and not text.endswith(
        WEIGHTS_ENDINGS + EXPORTED_ENDINGS
    )


def fetch(name: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder on this machine with a hub repository's configuration and weights, downloaded if
    need be.

    Nothing else of the repository is downloaded. revision: branch, tag or commit.
    local_files_only: from the hub's
    cache on this machine alone. Raises CheckpointError, MissingExtra.
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
        except (
            Exception
        ) as failure:  # the hub's client raises errors of several libraries, all of which mean this
            reason = next(iter(str(failure).splitlines()), "no reason given").rstrip(".: ")
            raise CheckpointError(
                f"{name} could not be had from the hub ({type(failure).__name__}: {reason}). Check "
                "name, revision "
                "and connection, or download the weights and name their file."
            ) from failure
        if (folder / weights).is_file():
            return folder
    raise CheckpointError(
        f"The hub repository {name} has no weights: neither {' nor '.join(WEIGHTS_NAMES)}. "
        "Where they have another name, download them and name their file."
    )


def _weights_in(folder: Path) -> Path:
    """The weights by their usual name, or the only ones."""
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
            f"{folder} is a folder of {len(others)} files of weights: {some}. Name one of them."
        )
    raise CheckpointError(
        f"{folder} is a folder without weights: neither {' nor '.join(WEIGHTS_NAMES)} is in it."
    )


def _described(text: object, file: Path) -> Checkpoint:
    """What our metadata says, as a checkpoint whose weights are still to come."""
    if not isinstance(text, str):
        raise CheckpointError(f"{file} is corrupt: its metadata is no text.")
    facts = json_object(text, f"The metadata of {file}")
    version = facts.get("format_version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{file} is corrupt: its format version is {version!r:.40}.")
    if version > FORMAT:
        raise CheckpointError(
            f"{file} is of format version {version}, and this repmamba reads up to {FORMAT}; "
            "install a newer repmamba."
        )
    try:
        config = NetworkConfig.from_dict(dict(facts["config"]))
        low, high = (float(value) for value in facts["value_range"])
        training = dict(facts.get("training", {}))
    except UsageError as refused:
        raise CheckpointError(
            f"{file} describes a network that there is not: {refused}"
        ) from refused
    except (KeyError, TypeError, ValueError, OverflowError) as failure:
        raise CheckpointError(
            f"{file} is corrupt: its metadata lacks config, value_range or training."
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
    # One entry only: safetensors writes several in an order of their own, and equal checkpoints
    # would differ.
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
    """A checkpoint under published names. beside: what config.json says, where there is one."""
    plain = {name: name.removeprefix("module.") for name in opened.shapes}
    if len(set(plain.values())) != len(plain):
        raise CheckpointError(
            f"{file} has the same name with and without `module.`; save it again with one."
        )
    found = {plain[name]: shape for name, shape in opened.shapes.items()}
    config = read_config(found, img_range=_img_range(beside, file))
    upscale = beside.get("upscale")
    if type(upscale) is int and upscale != config.scale and config.upsampler != "none":
        raise CheckpointError(
            f"config.json says upscale {upscale}, but this is an x{config.scale} checkpoint: "
            f"{file}. "
            "One of the two belongs to another network."
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
            f"config.json beside {file} says img_range {img_range!r:.40}; a number above 0 is due."
        )
    return float(img_range)


def _finished(described: Checkpoint, weights: Mapping[str, Tensor], file: Path) -> Checkpoint:
    """The checkpoint with its weights in memory of their own, as float32, their values checked."""
    own = {}
    for name, tensor in weights.items():
        count = name.endswith(COUNT)
        if tensor.is_floating_point() == count or tensor.is_complex():
            raise CheckpointError(
                f"{file} has {name} as {tensor.dtype}; weights are floating point, counts int64."
            )
        own[name] = (
            tensor.detach().to(torch.int64 if count else torch.float32, copy=True).contiguous()
        )
    _check_values(own, str(file))
    for name, shape in expected_shapes(described.config).items():
        if name not in own:  # a batch count: nothing else passed the check of names
            own[name] = torch.zeros(shape, dtype=torch.int64)
    return Checkpoint(
        described.config, own, described.origin, described.training, described.value_range
    )


def _check_values(weights: Mapping[str, Tensor], origin: str) -> None:
    for name, tensor in weights.items():
        # torch would start its threads for each of a thousand tensors
        if not np.isfinite(tensor.numpy()).all():
            raise CheckpointError(
                f"{origin} has values in {name} that are NaN or infinite; such weights are of no "
                "use."
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
