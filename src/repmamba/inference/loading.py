"""`load`: an Upscaler from the name of packaged weights, a file, a folder or the Hugging Face hub.

Also `pin_backend`, which makes another process compute the scan as this one does.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from repmamba.errors import CheckpointError, UsageError
from repmamba.inference.catalogue import FoundWeights, find_weights, terms_of
from repmamba.inference.compiled_runner import COMPILED_SCAN, compiled_runner
from repmamba.inference.confidence import read_calibration
from repmamba.inference.device import choose_device, choose_precision
from repmamba.inference.onnx_runner import open_exported
from repmamba.inference.runners import Runner, TorchRunner
from repmamba.inference.upscaler import Upscaler
from repmamba.network.checkpoint import EXPORTED_ENDINGS, Checkpoint, read_checkpoint
from repmamba.network.fusion import FusedRepMamba, FusedRMB
from repmamba.network.fusion import fuse as fused
from repmamba.network.repmamba import RepMamba
from repmamba.network.rmb import SS2D
from repmamba.scan.backends import explain
from repmamba.tiles.plan import HALO, LEAST, TILE, cuts

# lr pixels that a file of weights may ask for: memory grows with them
LARGEST = {"tile": 4096, "halo": 512}


def load(
    weights: str | os.PathLike[str] | None = None,
    *,
    scale: int | None = None,
    device: str | torch.device | None = None,
    backend: str | None = None,
    precision: str | None = None,
    fuse: bool = True,
    ensemble: bool = False,
    revision: str | None = None,
) -> Upscaler:
    """Load weights as an Upscaler.

    Args:
        weights: A packaged name (x2, x3, x4), a checkpoint file or folder, an exported
            network (.onnx), or a Hugging Face repository (owner/name). Default: the packaged
            weights of `scale`, or x4.
        scale: 2, 3 or 4; weights of another scale are refused.
        device: cpu, cuda, cuda:1, mps. Default: a CUDA GPU if there is one, otherwise the CPU.
        backend: Name of the scan backend. Default: the fastest that runs on the device.
        precision: float32 (default) or bfloat16.
        fuse: Fold the training-time branches of the network into single layers. False runs the
            network as trained, with torch operations.
        ensemble: Average over the eight flips and rotations of the input: eight times the work.
        revision: Branch, tag or commit of a Hugging Face repository.

    Returns:
        The Upscaler.

    Raises:
        CheckpointError: Weights not found, corrupt, or of another network or scale.
        UsageError: An option that is not allowed.
        MissingExtra: An optional package is not installed.
    """
    if scale is not None and operator.index(scale) not in (2, 3, 4):
        raise UsageError(f"scale={scale}: give 2, 3 or 4.")
    found = find_weights(weights if weights is not None else f"x{scale or 4}", revision=revision)
    if found.path.suffix.lower() in EXPORTED_ENDINGS:
        asked = {"scale": scale, "device": device, "backend": backend, "precision": precision}
        return _load_exported(found, asked, ensemble=ensemble)
    checkpoint = read_checkpoint(found.path)
    _check_checkpoint(found, checkpoint, scale)
    module: nn.Module = checkpoint.network()
    if fuse:
        module = fused(module)
    place, numbers = choose_device(device), choose_precision(precision)
    module = module.to(place).eval()
    scan = explain(place, backend).name
    if backend is not None:
        _use_backend(module, backend)
    digest = _digest(checkpoint)
    return Upscaler(
        module=module,
        runner=_runner(module, place, numbers, scan),
        name=found.name,
        digest=digest,
        tile=_advised(checkpoint, found, "tile", TILE),
        halo=_advised(checkpoint, found, "halo", HALO),
        device=place,
        precision=str(numbers).removeprefix("torch."),
        backend=scan,
        ensemble=ensemble,
        calibration=read_calibration(found.path, digest),
        terms=terms_of(found.path, checkpoint.training),
        denoises=_denoises(checkpoint.training),
    )


def _load_exported(found: FoundWeights, asked: Mapping[str, Any], *, ensemble: bool) -> Upscaler:
    """The Upscaler of an exported network: on the CPU, in float32, with its own scan."""
    allowed = {"device": ("cpu", torch.device("cpu")), "precision": ("float32",), "backend": ()}
    for name, values in allowed.items():
        if asked[name] is not None and asked[name] not in values:
            raise UsageError(
                f"{name}={str(asked[name])!r} is not available for an exported network such as "
                f"{found.path.name}, which ONNX Runtime runs on the CPU in float32: leave it out, "
                "or load the original weights."
            )
    runner = open_exported(found.path)
    facts = runner.facts
    _check_scale(found, facts.scale, asked["scale"])
    return Upscaler(
        module=runner.network,
        runner=runner,
        name=found.name,
        digest=hashlib.sha256(runner.content).hexdigest()[:32],
        tile=facts.tile,
        halo=facts.halo,
        device=torch.device("cpu"),
        ensemble=ensemble,
        terms=facts.terms,
        denoises=facts.denoises,
    )


def _check_checkpoint(found: FoundWeights, checkpoint: Checkpoint, scale: int | None) -> None:
    config = checkpoint.config
    if config.scale < 2:
        raise CheckpointError(
            f"{found.name} is a network that does not upscale (upsampler '{config.upsampler}')."
        )
    _check_scale(found, config.scale, scale)
    if checkpoint.value_range != (0.0, 1.0):
        low, high = checkpoint.value_range
        raise CheckpointError(
            f"{found.name} is a network for values from {low:g} to {high:g}; only networks for 0 "
            "to 1 can be run here. from_pretrained returns the network itself."
        )


def _check_scale(found: FoundWeights, scale: int, asked: int | None) -> None:
    if asked is not None and asked != scale:
        raise CheckpointError(
            f"{found.name} is an x{scale} checkpoint, but x{asked} was requested: name x{asked} "
            "weights."
        )


def _runner(module: nn.Module, device: torch.device, precision: torch.dtype, scan: str) -> Runner:
    """Compiled passes where the processor and the options allow them, torch everywhere else."""
    if isinstance(module, FusedRepMamba) and device.type == "cpu" and scan == COMPILED_SCAN:
        runner = compiled_runner(module, precision)
        if runner is not None:
            return runner
    assert isinstance(module, RepMamba | FusedRepMamba)
    return TorchRunner(module, module.scale, module.config.in_chans, device, precision)


def _advised(checkpoint: Checkpoint, found: FoundWeights, name: str, usual: int) -> int:
    """The tile or halo that the checkpoint advises, or the usual one. Raises CheckpointError."""
    value = checkpoint.training.get(name, usual)
    if type(value) is not int or not cuts(name, value) or value > LARGEST[name]:
        raise CheckpointError(
            f"{found.name} advises a {name} of {value!r:.40}; an even number of pixels from "
            f"{LEAST[name]} to {LARGEST[name]} is expected."
        )
    return value


def _denoises(training: Mapping[str, Any]) -> bool:
    """Whether the recipe of weights has degraded inputs."""
    recipe = training.get("recipe")
    data = recipe.get("data") if isinstance(recipe, Mapping) else None
    return isinstance(data, Mapping) and bool(data.get("degrade"))


def _digest(checkpoint: Checkpoint) -> str:
    """32 hex digits of SHA-256 over configuration and weights: equal networks, equal digests."""
    state = hashlib.sha256(repr(sorted(checkpoint.config.to_dict().items())).encode())
    for name, tensor in sorted(checkpoint.weights.items()):
        state.update(name.encode())
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()[:32]


def pin_backend(upscaler: Upscaler) -> None:
    """Use the scan backend that `load` chose, also in a process that would choose another.

    Raises UsageError if that backend does not run here.
    """
    if not upscaler.backend:  # an exported network
        return
    found = explain(upscaler.device, upscaler.backend)
    if found.name != upscaler.backend:
        raise UsageError(
            f"The scan should run on {upscaler.backend}, but {found.name} was chosen: {found.why}"
        )
    _use_backend(upscaler.module, upscaler.backend)


def _use_backend(module: nn.Module, backend: str) -> None:
    for part in module.modules():
        if isinstance(part, SS2D | FusedRMB):
            part.backend = backend
