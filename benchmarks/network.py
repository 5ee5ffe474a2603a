"""The network that the benchmarks of speed time, at x4 with random weights, and other ways to
compute it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from repmamba.inference.compiled_runner import compiled_runner
from repmamba.inference.packed_weights import Layers
from repmamba.inference.pass_plan import KernelCall, PassPlan
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import FusedRepMamba, fuse
from repmamba.network.repmamba import RepMamba
from repmamba.network.rmb import SS2D


def fused() -> Callable[[Tensor], Tensor]:
    """As inference computes it: by compiled passes."""
    network = in_passes(operations_of_torch(), torch.float32)
    assert network is not None
    return network


def in_passes(network: FusedRepMamba, precision: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """A fused network by compiled passes, where the processor has them in that precision."""
    runner = compiled_runner(network, precision)
    return None if runner is None else runner.network


def operations_of_torch() -> FusedRepMamba:
    """The fused network as a module of torch."""
    return fuse(RepMamba(NetworkConfig()))


def not_fused(scan: str | None = None) -> RepMamba:
    """As training computes it. scan: a backend by name; None for the one that is chosen by
    itself.
    """
    network = RepMamba(NetworkConfig())
    for module in network.modules():
        if isinstance(module, SS2D):
            module.backend = scan
    return network


class Stages:
    """The compiled passes of a fused network over one image, to be run stage by stage."""

    def __init__(self, network: FusedRepMamba, image: Tensor) -> None:
        self.plan = PassPlan(Layers(network, ""), (*image.shape, torch.get_num_threads()))
        self.result = self.plan.run(image)  # kept: the last stage writes into it

    def run(self, wanted: Callable[[KernelCall], bool]) -> None:
        """Those stages that are wanted, one after the other."""
        for place, stage in enumerate(self.plan.stages):
            if wanted(stage):
                self.plan.compute(place, place + 1)

    def timed(self, clock: Callable[[], float]) -> list[tuple[KernelCall, float]]:
        """Every stage, run by itself, with the seconds that it took."""
        taken = []
        for place, stage in enumerate(self.plan.stages):
            begin = clock()
            self.plan.compute(place, place + 1)
            taken.append((stage, clock() - begin))
        return taken


def in_the_scan(stage: KernelCall) -> bool:
    """Whether a stage of the passes is the scan's."""
    return stage.kernel == "scan_forward"
