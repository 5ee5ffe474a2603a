"""Training on a GPU equals training on a CPU; on a CPU the tests show that they can be met."""

from typing import Any

import pytest

from repmamba.train.loop import fit

# relative: sums in another order, over eight steps
NEAR = {"cpu": 0.0, "cuda": 2e-3}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """A device to train on."""
    found: str = request.param
    return found


def check_near(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]], device: str) -> None:
    """The same entries of a curve, with numbers that are near."""
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    for mine, other in zip(found, expected, strict=True):
        assert [value is None for value in mine] == [value is None for value in other]
        numbers = [value for value in mine[2:] if value is not None]
        assert numbers == pytest.approx(
            [value for value in other[2:] if value is not None], rel=NEAR[device], abs=0
        )


def test_training_takes_the_steps_of_the_cpu(tiny, tmp_path, whole_run, seen, device):
    assert fit(tiny(), tmp_path, log_every=1, device=device).finished
    check_near(seen(tmp_path), seen(whole_run), device)


def test_a_stopped_run_goes_on(tiny, tmp_path, whole_run, seen, device):
    while not fit(tiny(), tmp_path, log_every=1, minutes=0, device=device).finished:
        pass
    check_near(seen(tmp_path), seen(whole_run), device)


def test_images_kept_on_the_device_change_nothing(tiny, tmp_path, whole_run, seen, device):
    fit(tiny(data={"cache": "device"}), tmp_path, log_every=1, device=device)
    check_near(seen(tmp_path), seen(whole_run), device)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_on_a_gpu_is_near(tiny, tmp_path, whole_run, seen, compiled):
    step = {"precision": "bf16", "compile": compiled}
    fit(tiny(step=step), tmp_path, log_every=1, device="cuda")
    losses = [[entry[2] for entry in seen(run)[:4]] for run in (tmp_path, whole_run)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
