"""One step: the optimiser's input, for a whole batch or in parts."""

import pytest
import torch
from torch import nn

from repmamba.train.ema import ExponentialMovingAverage
from repmamba.train.losses import LOSSES
from repmamba.train.step import Batch, training_step


def enlarging(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))


def batch(count: int = 6, weight: float = 1.0) -> Batch:
    draw = torch.Generator().manual_seed(3)
    return Batch(
        torch.rand(count, 3, 6, 6, generator=draw),
        torch.rand(count, 3, 12, 12, generator=draw),
        weight,
    )


def after(**options) -> tuple[list[torch.Tensor], float, float]:
    network = enlarging()
    weight, count = options.pop("weight", 1.0), options.pop("count", 6)
    result = training_step(
        network,
        torch.optim.SGD(network.parameters(), 0.1),
        batch(count, weight),
        LOSSES["l1"],
        **options,
    )
    return list(network.parameters()), float(result.loss), float(result.gradient_norm)


@pytest.mark.parametrize(("count", "parts"), [(6, 2), (6, 3), (6, 6), (5, 2), (5, 4)])
def test_a_batch_in_parts_gives_the_same_update_even_where_they_are_uneven(count, parts):
    whole, loss, norm = after(count=count)
    pieces, pieces_loss, pieces_norm = after(count=count, parts=parts)
    assert pieces_loss == pytest.approx(loss, rel=1e-5)
    assert pieces_norm == pytest.approx(norm, rel=1e-5)
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_large_gradient_is_clipped_and_its_norm_reported():
    start = list(enlarging().parameters())
    _, _, norm = after()
    clipped, _, reported = after(clip=norm / 4)
    assert reported == pytest.approx(norm)
    moved = torch.cat([(a - b).flatten() for a, b in zip(clipped, start, strict=True)])
    assert float(moved.norm().detach()) == pytest.approx(0.1 * norm / 4, rel=1e-3)


def test_a_share_of_weight_zero_changes_nothing():
    still, loss, norm = after(weight=0.0)
    assert (loss, norm) == (0.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(still, enlarging().parameters(), strict=True))


def test_autocast_leaves_weights_and_loss_in_float32():
    network = enlarging()
    seen = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    result = training_step(
        network,
        torch.optim.SGD(network.parameters(), 0.1),
        batch(),
        LOSSES["l1"],
        precision=torch.bfloat16,
    )
    assert seen == [torch.bfloat16]
    assert result.loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_the_moving_average_follows_weights_and_buffers():
    network = nn.BatchNorm2d(2)
    average = ExponentialMovingAverage(network, decay=0.5)
    with torch.no_grad():
        network.weight.fill_(3)
        network.running_mean.fill_(2)
        network.num_batches_tracked.fill_(7)
    average.update(network)  # the first update keeps (1 + 0) / (10 + 0) = 0.1
    torch.testing.assert_close(average.network.weight, torch.full((2,), 0.1 + 0.9 * 3))
    torch.testing.assert_close(average.network.running_mean, torch.full((2,), 0.9 * 2))
    assert int(average.network.num_batches_tracked) == 7
    for _ in range(100):
        average.update(network)
    torch.testing.assert_close(average.network.weight, network.weight.detach())
    assert not average.network.training
