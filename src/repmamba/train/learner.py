"""The learner: everything that training changes: the network, its optimiser and its EMA.

Also wraps the network for several processes or for torch.compile; names of weights never show that.
"""

import copy
import logging
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repmamba.errors import RecipeError
from repmamba.network.repmamba import RepMamba
from repmamba.network.training_cpu import with_fast_passes
from repmamba.train.distributed import Processes
from repmamba.train.ema import ExponentialMovingAverage
from repmamba.train.losses import weighted
from repmamba.train.muon import Muon, is_body_matrix
from repmamba.train.recipe import Recipe
from repmamba.train.start import mean_weights, provenance, start_bilinear, weights_for
from repmamba.train.step import Batch, StepResult, training_step

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
# patches in a trial of bf16, and how often each precision is timed; the shortest time counts
TRIAL_PATCHES, TRIAL_ROUNDS = 4, 2


class Learner:
    """A network in training.

    network: the plain one, on its device, in training mode.
    best_network: the EMA if there is one, otherwise the network.
    precision: "float32" or "bf16", as chosen for this machine when the run began.
    begun_from: the weights that training started from, and the facts of their training.
    """

    def __init__(self, recipe: Recipe, device: torch.device, processes: Processes) -> None:
        self.recipe = recipe
        self.device = device
        torch.manual_seed(recipe.seed)
        network = RepMamba(recipe.network)
        average = _begin(network, recipe)
        # Kernels in the memory format of the network's maps save a tenth of a step on a CPU.
        self.network = network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        if device.type == "cpu" and not recipe.step.compile:
            with_fast_passes(self.network)
        if recipe.step.batch_norm == "synchronised" and processes.world > 1:
            self.network = synchronised(self.network, device)
        if recipe.step.batch_norm == "frozen":  # in evaluation mode they use the running statistics
            for part in self.network.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
        self.begun_from = provenance(recipe.start.weights) if recipe.start.weights else None
        if self.begun_from and recipe.start.mean_with:
            self.begun_from["mean_with"] = [provenance(source) for source in recipe.start.mean_with]
        self.average = average
        if average is not None:
            average.network.to(device)
        kind = Muon if recipe.optimiser.kind == "muon" else torch.optim.AdamW
        self.optimiser = kind(
            parameter_groups(self.network, recipe),
            lr=recipe.optimiser.lr,
            betas=recipe.optimiser.betas,
            eps=recipe.optimiser.eps,
            fused=True,
        )
        self.loss = weighted({term.name: term.weight for term in recipe.losses})
        self.precision = ""
        self._wrapped = _wrapped(self.network, recipe, device, processes)

    @property
    def best_network(self) -> RepMamba:
        """The network to validate and save; not necessarily in evaluation mode."""
        return self.network if self.average is None else self.average.network

    def choose_precision(self, processes: Processes) -> str:
        """The recipe's precision, or float32 if bf16 is not faster on this machine.

        The first process times it on patches of the first phase, and the others follow.
        """
        first = self.recipe.data.patches[0]
        count = min(TRIAL_PATCHES, first.batch)
        shape = (count, self.recipe.network.in_chans, first.size, first.size)
        asked = self.recipe.step.precision
        tried = asked == "bf16" and processes.first
        if tried and self.device.type == "cpu":
            logger.info("Timing whether this processor computes bf16 faster than float32.")
        fits = processes.agree(
            asked == "float32" or (tried and bf16_is_faster(self.network, self.device, shape))
        )
        self.precision = asked if fits else "float32"
        return self.precision

    def step(self, batch: Batch, rate: float, *, surplus: bool = False) -> StepResult:
        """One step on this process's share of a batch.

        surplus: then step the optimiser once more on the same gradients.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        result = training_step(
            self._wrapped,
            self.optimiser,
            batch,
            self.loss,
            clip=self.recipe.step.clip or None,
            precision=PRECISIONS[self.precision],
            parts=self.recipe.step.accumulate,
        )
        if surplus:
            self.optimiser.step()
        if self.average:
            self.average.update(self.network)
        return result

    def state(self) -> dict[str, Any]:
        """The whole state, as tensors and plain values, not copied."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "precision": self.precision,
            "average": self.average
            and {"network": self.average.network.state_dict(), "updates": self.average.updates},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state of the same recipe."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.precision = state["precision"]
        if self.average:
            self.average.network.load_state_dict(state["average"]["network"])
            self.average.updates = state["average"]["updates"]


def parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters and their weight decay: all decay, or only matrices and kernels.

    A_log is two-dimensional, but holds time constants of the scan: it does not count as a matrix.
    For Muon, the matrices of the body are a group of their own.
    """
    orthogonal: list[Tensor] = []
    decaying: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if recipe.optimiser.kind == "muon" and is_body_matrix(name, parameter):
            orthogonal.append(parameter)
            continue
        is_matrix = parameter.dim() >= 2 and not name.endswith("A_log")
        (decaying if is_matrix or recipe.optimiser.decay == "all" else others).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": recipe.optimiser.weight_decay}
    ]
    if orthogonal:
        groups.append({**groups[0], "params": orthogonal, "matrices": True})
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return groups


def bf16_is_faster(network: nn.Module, device: torch.device, shape: tuple[int, ...]) -> bool:
    """Whether a forward and backward pass is faster under bf16 autocast, by a short trial.

    A processor without bf16 instructions is hundreds of times slower and is not tried. The network
    is not changed. shape: of an lr batch, (B, C, h, w).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    native = torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device.type != "cpu" or not native:
        return False
    copied, lr = copy.deepcopy(network), torch.full(shape, 0.5)
    times: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    # alternating, so that other load affects both
    for precision in [*times] * (1 + TRIAL_ROUNDS):
        times[precision].append(_seconds(copied, lr, precision))
    return min(times[torch.bfloat16]) < min(times[torch.float32])


def synchronised(network: RepMamba, device: torch.device) -> RepMamba:
    """The network with BatchNorm statistics over all processes. Raises RecipeError off a GPU."""
    if device.type != "cuda":
        raise RecipeError(
            "step.batch_norm is synchronised, which PyTorch only supports on GPUs; set it to "
            "process on CPUs."
        )
    converted: RepMamba = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def _begin(network: RepMamba, recipe: Recipe) -> ExponentialMovingAverage | None:
    """Set the network's initial weights; returns its EMA, if the recipe has one."""
    start = recipe.start
    if start.weights:
        network.load_state_dict(mean_weights(recipe.network, [start.weights, *start.mean_with]))
    elif start.kind == "bilinear":
        start_bilinear(network)
    if not recipe.step.ema:
        return None
    average = ExponentialMovingAverage(network, recipe.step.ema)
    if start.ema:
        average.network.load_state_dict(weights_for(recipe.network, start.ema))
    return average


def _wrapped(
    network: nn.Module, recipe: Recipe, device: torch.device, processes: Processes
) -> nn.Module:
    if processes.world > 1:
        gpus = [device] if device.type == "cuda" else None
        network = DistributedDataParallel(network, device_ids=gpus)
    if recipe.step.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    return network


def _seconds(network: nn.Module, lr: Tensor, precision: torch.dtype) -> float:
    # CPU time of this process, not wall time: under other load, wall time was seen to choose the
    # slower.
    begun = time.process_time()
    with torch.autocast(lr.device.type, precision, enabled=precision != torch.float32):
        sr: Tensor = network(lr)
    sr.float().sum().backward()  # type: ignore[no-untyped-call]
    return time.process_time() - begun
