"""The network that the benchmarks of speed time, at x4 with random weights, and other ways to compute it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from unittest.mock import patch

from torch import nn

from repmamba.network import inference_cpu, inference_stages
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import fuse
from repmamba.network.inference_cpu import Array
from repmamba.network.inference_stages import Stage
from repmamba.network.repmamba import RepMamba
from repmamba.network.rmb import SS2D


def fused() -> nn.Module:
    """As inference computes it: by compiled passes."""
    return fuse(RepMamba(NetworkConfig()))


def not_fused(scan: str | None = None) -> RepMamba:
    """As training computes it. scan: a backend by name; None for the one that is chosen by itself."""
    network = RepMamba(NetworkConfig())
    for module in network.modules():
        if isinstance(module, SS2D):
            module.backend = scan
    return network


def without_passes() -> AbstractContextManager[object]:
    """Within it a fused network is computed by operations of torch alone."""
    return patch.object(inference_cpu, "serves", lambda *tensors: False)


@contextmanager
def stages_timed(clock: Callable[[], float], tell: Callable[[Stage, float], None]) -> Iterator[None]:
    """Within it each stage of the compiled passes runs by itself, and is told with the seconds that it took."""

    def one_by_one(stages: Sequence[Stage], kernels: ModuleType, memory: Callable[[int], Array]) -> None:
        for stage in stages:
            begin = clock()
            inference_stages.run((stage,), kernels, memory)
            tell(stage, clock() - begin)

    with patch.object(inference_cpu, "run", one_by_one):
        yield


def in_the_scan(stage: Stage) -> bool:
    """Whether a stage of the passes is the scan's."""
    return stage.kernel.__module__ == "repmamba.scan.numba_kernels"
