"""CompiledRunner: the fused network on a CPU in compiled passes, which read and write each map
once.

In torch each operation between two layers reads and writes a whole map. Here an RMB is two passes
with the scan between them, a ConvFFN is one, and so is a 3x3 convolution (kernels/inference.h says
what each computes). The runner packs the network's weights once, when it is made. For each shape it
writes a plan: the maps, and the stages with the addresses of all that they read and write. Plans
are kept for the next call of their shape: allocated anew, their page faults would cost a third of
the time. A call is then one call into the library for each thread (kernels/plan.cpp).

Threads: as many as torch.get_num_threads() says, or `share_passes`; the result is the same, bit by
bit, for any number. No operation of torch runs meanwhile: its threads would keep the cores for a
while after each.

In bfloat16 the factors of the large products are rounded to it, two to a number, and so is what an
RMB's first pass leaves for its second one; all else stays float32.
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

COMPILED_SCAN = "native"
"""The backend of the scan that the passes call: where another one is asked for, torch computes."""

KEPT = 1 << 28
"""Numbers of all maps of plans that wait for the next call of their shape; a plan of 750 x 750
pixels has so many.
"""

KEPT_BESIDE = 1 << 24
"""The same, while a plan of another shape is made."""

_of_thread = threading.local()


def compiled_runner(network: FusedRepMamba, precision: torch.dtype) -> Runner | None:
    """A runner of the network as it is now, on the CPU; None where this processor has no products
    of that precision.

    Raises OSError where there are no compiled kernels.
    """
    if precision == torch.float32:
        return CompiledRunner(network, "")
    kernels = library()
    return CompiledRunner(network, "_amx" if kernels.amx else "_pairs") if kernels.pairs else None


def _made_elsewhere(network: FusedRepMamba, precision: torch.dtype) -> Runner:
    """What stands for a runner in another process, whose processor may be another one."""
    runner = compiled_runner(network, precision)
    if runner is None:
        raise UsageError(
            f"The processor of {platform.node()} has no products of {precision}: use float32 there."
        )
    return runner


def share_passes(threads: int) -> None:
    """Let the passes of the calling thread be shared by so many, or by as many as operations of
    torch are: 0.
    """
    _of_thread.threads = threads


class CompiledRunner:
    """See Runner. Keeps what the network's weights were when it was made."""

    def __init__(self, network: FusedRepMamba, suffix: str) -> None:
        """suffix: of the kernels' names: none for float32, "_pairs" or "_amx" for bfloat16."""
        self.scale, self.bands = network.scale, network.config.in_chans
        self._source = network
        self._layers = Layers(network, suffix)
        self._enlarge = (
            None if isinstance(network.upsampler, PixelShuffleDirect) else network.upsampled
        )
        self._cast = suffix != ""
        self._kept: list[PassPlan] = []  # those that nobody runs, the last used one last
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_elsewhere, (self._source, torch.bfloat16 if self._cast else torch.float32)

    def run(self, unit: Tensor) -> Tensor:
        """See Runner."""
        return self.network(unit.detach())

    def network(self, image: Tensor) -> Tensor:
        """image: (B, bands, H, W), float32, on the CPU -> (B, bands, scale H, scale W), not
        clamped; no gradients.

        Raises ShapeMismatch, and UsageError for an image that asks for gradients, or of another
        type or device.
        """
        check_input(image, self.bands)
        if image.device.type != "cpu" or image.dtype != torch.float32:
            raise UsageError(
                f"The network got {image.dtype} on {image.device}; in this form it takes "
                "torch.float32 on the CPU. "
                "Use `module` of the Upscaler for others."
            )
        if image.requires_grad and torch.is_grad_enabled():
            raise UsageError(
                "The network was given an image that requires gradients, and in this form it "
                "computes none: "
                "use `module` of the Upscaler, or torch.no_grad()."
            )
        image = image.detach()
        plan = self._plan(
            (*image.shape, getattr(_of_thread, "threads", 0) or torch.get_num_threads())
        )
        result = plan.run(image)
        self._keep(plan)
        if self._enlarge is not None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._cast):
                result = self._enlarge(image, result).float()
        return result[..., : image.shape[2] * self.scale, : image.shape[3] * self.scale]

    def _plan(self, key: tuple[int, ...]) -> PassPlan:
        """One that nobody else runs."""
        with self._lock:
            keys = [plan.key for plan in self._kept]
            if key in keys:
                return self._kept.pop(keys.index(key))
            # What other shapes took is given back first, so that memory does not add up.
            self._drop(KEPT_BESIDE)
        return PassPlan(self._layers, key)

    def _keep(self, plan: PassPlan) -> None:
        if plan.numbers <= KEPT:
            with self._lock:
                self._drop(KEPT - plan.numbers)
                self._kept.append(plan)

    def _drop(self, most: int) -> None:
        """Let go of plans, those not used for longest first, until the others have at most so many
        numbers.
        """
        while self._kept and sum(plan.numbers for plan in self._kept) > most:
            del self._kept[0]
