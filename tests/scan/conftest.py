"""Seeded inputs of the scan, and how two results are compared."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

MapCase = Callable[..., list[Tensor]]


@pytest.fixture
def map_case() -> MapCase:
    """Makes (p, projected, dt_weight, dt_bias, A, D) of scan_map, in float64 and channels_last."""

    def make(
        batch: int, channel: int, height: int, width: int, rank: int, *, spread: float = 1.0
    ) -> list[Tensor]:
        generator = torch.Generator().manual_seed(
            batch + 10 * channel + 100 * height + 1000 * width + rank
        )

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        maps = [normal(batch, n, height, width) for n in (channel, 4 * (rank + 32))]
        rates = torch.arange(1, 17) * torch.exp(0.3 * normal(4 * channel, 16))
        rates[::3] /= 100  # some channels have a long memory
        return [
            *(x.to(memory_format=torch.channels_last) for x in maps),
            *(
                spread * normal(4, channel, rank),
                normal(4, channel) - 2,
                -rates,
                normal(4 * channel),
            ),
        ]

    return make


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """Fill torch.empty with NaN, to find results that a kernel forgets to write."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
