"""How images of any number of bands go through a network of three.

Red, green and blue go together; every other band goes through the network by itself, as grey, and
its result is the mean of the three output bands. So no result depends on which other bands there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Groups = tuple[tuple[int, ...], ...]  # bands, counted from 0, that go through the network together


def group_bands(count: int, rgb: Sequence[int] | None, network_bands: int) -> Groups:
    """Group `count` bands for a network of `network_bands`; every band is in exactly one group.

    rgb: the positions (from 0) of red, green and blue, or None if there are no colours.
    """
    if network_bands == count and network_bands != 3:
        return (tuple(range(count)),)  # a network for exactly these bands
    together = tuple(rgb) if rgb is not None and network_bands == 3 else ()
    alone = tuple((band,) for band in range(count) if band not in together)
    return ((together, *alone)) if together else alone


def enlarge_groups(
    run: Callable[[Tensor], Tensor], unit: Tensor, groups: Groups, network_bands: int
) -> Tensor:
    """unit: (bands, h, w) -> (bands, scale h, scale w), one group at a time to save memory."""
    # every RGB scene: return the network's result without a copy
    if groups == (tuple(range(network_bands)),):
        return run(unit.unsqueeze(0))[0]
    results: list[Tensor | None] = [None] * unit.shape[0]
    for group in groups:
        together = unit[list(group)].unsqueeze(0)  # (1, len(group), h, w)
        if len(group) == network_bands:
            for band, result in zip(group, run(together)[0], strict=True):
                results[band] = result
        else:
            grey = run(together.expand(-1, network_bands, -1, -1))
            results[group[0]] = grey[0].mean(0)
    return torch.stack([result for result in results if result is not None])
