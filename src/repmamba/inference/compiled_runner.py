"""CompiledRunner: the fused network on a CPU, in compiled passes over memory.

In torch each operation between two layers reads and writes a whole map. Here an RMB is two passes
with the scan between them, and a ConvFFN and a 3x3 convolution are one pass each
(kernels/inference.h). The runner packs the network's weights once. For each input shape it makes a
plan with the maps and the addresses that each kernel reads and writes. Plans are kept for the next
call of their shape, because page faults of new memory would cost a third of the time. A call is
then one call into the library per thread (kernels/plan.cpp).

The number of threads is torch.get_num_threads() or that of `share_passes`; the result is the same,
bit by bit, for any number. No torch operation runs meanwhile, because torch's threads keep spinning
on the cores for a while after each.

In bfloat16 the factors of the large products, and the map between the two passes of an RMB, are
rounded; everything else stays float32.
"""

import platform
import threading
from typing import Any

import torch
from torch import Tensor

from repmamba.errors import UsageError
from repmamba.inference.packed_weights import Layers
from repmamba.inference.pass_plan import PassPlan
from repmamba.inference.runners import Runner
from repmamba.kernels.library import library
from repmamba.network.fusion import FusedRepMamba
from repmamba.network.repmamba import PixelShuffleDirect, check_input

COMPILED_SCAN = "native"  # the scan backend that the passes call; with any other, torch computes

# numbers in all maps of the plans kept for later calls; a plan of 750 x 750 pixels has this many
KEPT = 1 << 28
KEPT_BESIDE = 1 << 24  # the same, while a plan of another shape is made

_of_thread = threading.local()


def compiled_runner(network: FusedRepMamba, precision: torch.dtype) -> Runner | None:
    """A runner of the network on the CPU; None if the processor has no products of that precision.

    Later changes to the network's weights have no effect. Raises OSError without compiled kernels.
    """
    if precision == torch.float32:
        return CompiledRunner(network, "")
    kernels = library()
    return CompiledRunner(network, "_amx" if kernels.amx else "_pairs") if kernels.pairs else None


def _made_elsewhere(network: FusedRepMamba, precision: torch.dtype) -> Runner:
    """Unpickle a runner in another process, whose processor may be different."""
    runner = compiled_runner(network, precision)
    if runner is None:
        raise UsageError(
            f"The processor of {platform.node()} does not support {precision}: use float32 there."
        )
    return runner


def share_passes(threads: int) -> None:
    """Set how many threads share the passes of the calling thread; 0 for torch's number."""
    _of_thread.threads = threads


class CompiledRunner:
    """See Runner. Uses the weights that the network had when the runner was made."""

    def __init__(self, network: FusedRepMamba, suffix: str) -> None:
        """suffix: of the kernels' names: "" for float32, "_pairs" or "_amx" for bfloat16."""
        self.scale, self.bands = network.scale, network.config.in_chans
        self._source = network
        self._layers = Layers(network, suffix)
        direct = isinstance(network.upsampler, PixelShuffleDirect)
        self._enlarge = None if direct else network.upsampled
        self._cast = suffix != ""
        self._kept: list[PassPlan] = []  # those not in use, the last used one last
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_elsewhere, (self._source, torch.bfloat16 if self._cast else torch.float32)

    def run(self, unit: Tensor) -> Tensor:
        """See Runner."""
        return self.network(unit.detach())

    def network(self, image: Tensor) -> Tensor:
        """image: (B, bands, H, W), float32 on the CPU -> (B, bands, scale H, scale W), not clamped.

        Raises ShapeMismatch, and UsageError for an image that requires gradients, or of another
        type or device.
        """
        check_input(image, self.bands)
        if image.device.type != "cpu" or image.dtype != torch.float32:
            raise UsageError(
                f"The network got {image.dtype} on {image.device}; the compiled form takes "
                "torch.float32 on the CPU. Use `module` of the Upscaler for others."
            )
        if image.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                "The network got an image that requires gradients, but the compiled form computes "
                "none: use `module` of the Upscaler, or torch.no_grad()."
            )
        image = image.detach()
        threads = getattr(_of_thread, "threads", 0) or torch.get_num_threads()
        plan = self._plan((*image.shape, threads))
        result = plan.run(image)
        self._keep(plan)
        if self._enlarge is not None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._cast):
                result = self._enlarge(image, result).float()
        return result[..., : image.shape[2] * self.scale, : image.shape[3] * self.scale]

    def _plan(self, key: tuple[int, ...]) -> PassPlan:
        """A plan that no other call uses."""
        with self._lock:
            keys = [plan.key for plan in self._kept]
            if key in keys:
                return self._kept.pop(keys.index(key))
            # First release plans of other shapes, so that memory does not add up.
            self._drop(KEPT_BESIDE)
        return PassPlan(self._layers, key)

    def _keep(self, plan: PassPlan) -> None:
        if plan.numbers <= KEPT:
            with self._lock:
                self._drop(KEPT - plan.numbers)
                self._kept.append(plan)

    def _drop(self, most: int) -> None:
        """Release the least recently used plans until the others hold at most `most` numbers."""
        while self._kept and sum(plan.numbers for plan in self._kept) > most:
            del self._kept[0]
