"""Bands: each goes through the network once, colours together, others by themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repmamba.inference.bands import enlarge_groups, group_bands


def three_bands_mixed(unit: torch.Tensor) -> torch.Tensor:
    """A network of three bands whose result in one band depends on the other two."""
    assert unit.shape[1] == 3
    mixed = unit + 0.25 * unit.roll(1, dims=1)
    return mixed.repeat_interleave(2, -1).repeat_interleave(2, -2)


@given(count=st.integers(1, 200), data=st.data())
def test_every_band_is_in_exactly_one_group(count, data):
    colours = st.permutations(range(count)).map(lambda places: tuple(places[:3]))
    rgb = data.draw(st.none() | colours) if count >= 3 else None
    groups = group_bands(count, rgb, 3)
    assert sorted(band for group in groups for band in group) == list(range(count))
    assert (rgb in groups) == (rgb is not None)


@pytest.mark.parametrize("count", [1, 2, 4, 13, 200])
def test_other_bands_do_not_depend_on_each_other(count):
    unit = torch.rand(count, 6, 5)
    result = enlarge_groups(three_bands_mixed, unit, group_bands(count, None, 3), 3)
    assert result.shape == (count, 12, 10)
    for band in range(count):
        alone = enlarge_groups(three_bands_mixed, unit[band : band + 1], ((0,),), 3)
        assert torch.equal(result[band], alone[0])


def test_colours_go_together_in_red_green_blue_order():
    unit = torch.rand(4, 3, 3)  # blue, green, red and one more
    result = enlarge_groups(three_bands_mixed, unit, group_bands(4, (2, 1, 0), 3), 3)
    expected = three_bands_mixed(unit[[2, 1, 0]].unsqueeze(0))[0]
    assert torch.equal(result[[2, 1, 0]], expected)
    assert torch.equal(result[3, ::2, ::2], (1.25 * unit[3].expand(3, -1, -1)).mean(0))


def test_a_network_for_four_bands_takes_them_together():
    assert group_bands(4, None, 4) == ((0, 1, 2, 3),)
