"""Which patches a step uses, and how they are augmented."""

import numpy as np
import pytest

from repmamba.data.patches import Phase, Sampler, counter_generator


@pytest.mark.parametrize("keep_short", [True, False], ids=["short batch kept", "filled"])
def test_an_epoch_sees_every_image_once(keep_short):
    sampler = Sampler(7, ((9, 9),) * 10, (Phase(size=4, batch=3),), keep_short=keep_short)
    assert sampler.steps_per_epoch(0) == 4

    seen = [sample.image for step in range(4) for sample in sampler.samples(step)]

    assert sorted(seen[:10]) == list(range(10))
    assert len(seen) == (10 if keep_short else 12)
    assert [sampler.count(step) for step in range(4)] == [3, 3, 3, 1 if keep_short else 3]
    assert [step for step in range(9) if sampler.ends_epoch(step)] == [3, 7]


def test_by_area_an_image_gives_patches_in_proportion_to_its_area():
    sampler = Sampler(7, ((4, 4), (8, 12), (4, 12)), (Phase(size=4, batch=10),), by_area=True)
    seen = [sample.image for step in range(200) for sample in sampler.samples(step)]
    shares = np.bincount(seen, minlength=3) / len(seen)
    np.testing.assert_allclose(shares, np.array([16, 96, 48]) / 160, atol=0.03)
    assert sampler.samples(5) == sampler.samples(5)


def test_epochs_phases_and_seeds_differ_and_the_same_step_is_the_same():
    phases = (Phase(0, 4, 8), Phase(2, 6, 8))
    sampler = Sampler(7, ((9, 12),) * 8, phases, ("flips",))
    drawn = [sampler.samples(step) for step in range(4)]

    assert drawn == [
        Sampler(7, ((9, 12),) * 8, phases, ("flips",)).samples(step) for step in range(4)
    ]
    places = [[(sample.image, sample.row, sample.col) for sample in samples] for samples in drawn]
    assert len({str(place) for place in places}) == 4
    assert Sampler(8, ((9, 12),) * 8, phases, ("flips",)).samples(0) != drawn[0]
    assert [sampler.phase(step) for step in range(4)] == [0, 0, 1, 1]


def test_offsets_reach_both_ends_of_a_non_square_image():
    sampler = Sampler(1, ((6, 9),), (Phase(size=5, batch=1),))
    drawn = [sampler.samples(step)[0] for step in range(200)]
    assert {sample.row for sample in drawn} == {0, 1}
    assert {sample.col for sample in drawn} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        ((), 1),
        (("flips",), 4),
        (("rotations",), 4),
        (("transpose",), 2),
        (("flips", "transpose"), 8),
    ],
)
def test_augmentations_give_each_orientation_equally_often(augment, expected):
    sampler = Sampler(3, ((5, 5),) * 16, (Phase(size=5, batch=16),), augment)
    drawn = [sample for step in range(100) for sample in sampler.samples(step)]
    counts: dict[tuple[bool, bool, bool], int] = {}
    for sample in drawn:
        key = (sample.flipped_rows, sample.flipped_cols, sample.transposed)
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == expected
    assert min(counts.values()) > 0.7 * len(drawn) / expected


def test_random_numbers_depend_only_on_their_counter():
    a = counter_generator(1, (0, 0, 0)).integers(0, 2**62, 1000)
    for other in [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert not np.isin(a, counter_generator(1, other).integers(0, 2**62, 1000)).any()
    assert not np.isin(a, counter_generator(1, (0, 0, 0), purpose=1).integers(0, 2**62, 1000)).any()
