"""What a recipe asks for is what happens: each key against the same done by hand, and against its
being ignored.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from repmamba.data.patches import Sampler
from repmamba.data.stock import Stock
from repmamba.errors import RecipeError, RepmambaWarning
from repmamba.network.checkpoint import read_checkpoint
from repmamba.train.batches import batches, checksums, open_stock, sampler_of, training_files
from repmamba.train.distributed import Processes
from repmamba.train.learner import Learner
from repmamba.train.loop import fit
from repmamba.train.losses import LOSSES
from repmamba.train.recipe import Recipe
from repmamba.train.step import Batch
from repmamba.train.validation import ValidationResult, Validator

CPU, RATE = torch.device("cpu"), 1e-2
Recipes = Callable[..., Recipe]


def batch() -> Batch:
    draw = torch.Generator().manual_seed(3)
    return Batch(torch.rand(4, 3, 6, 6, generator=draw), torch.rand(4, 3, 12, 12, generator=draw))


def begun(recipe: Recipe) -> Learner:
    learner = Learner(recipe, CPU, Processes())
    learner.precision = "float32"
    return learner


def weights(network: torch.nn.Module) -> Tensor:
    """All of a network's parameters in one row, a copy."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def by_hand(
    recipe: Recipe, *, clip: float = torch.inf, loss: Callable[..., Tensor] = LOSSES["l1"], **adamw
) -> Tensor:
    """The weights after two steps with torch's own AdamW: with one, neither its betas nor a clip
    would be seen.
    """
    network = begun(recipe).network
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=RATE, fused=True, **({"weight_decay": 0.01} | adamw)
    )
    for _ in range(2):
        optimiser.zero_grad()
        loss(network(batch().lr), batch().hr).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimiser.step()
    return weights(network)


def two_losses(sr: Tensor, hr: Tensor) -> Tensor:
    return 0.5 * LOSSES["l2"](sr, hr) + 2 * LOSSES["gradient"](sr, hr)


LOSS_TERMS = [{"name": "l2", "weight": 0.5}, {"name": "gradient", "weight": 2}]


@pytest.mark.parametrize(
    ("asked", "done"),
    [
        ({"optimiser": {"betas": [0.5, 0.7]}}, {"betas": (0.5, 0.7)}),
        ({"optimiser": {"eps": 0.1}}, {"eps": 0.1}),
        ({"optimiser": {"weight_decay": 0.5}}, {"weight_decay": 0.5}),
        ({"step": {"clip": 0.01}}, {"clip": 0.01}),
        ({"losses": LOSS_TERMS}, {"loss": two_losses}),
    ],
    ids=["betas", "eps", "weight decay", "clip", "losses"],
)
def test_two_steps_match_torchs_adamw_with_the_recipes_options(tiny: Recipes, asked, done):
    plain = tiny(step={"clip": 0.0, "ema": 0.0})
    learner = begun(tiny(**(asked | {"step": {"clip": 0.0, "ema": 0.0} | asked.get("step", {})})))
    for _ in range(2):
        learner.step(batch(), RATE)
    torch.testing.assert_close(weights(learner.network), by_hand(plain, **done))
    assert not torch.allclose(weights(learner.network), by_hand(plain), atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_batch_is_computed_in_the_recipes_number_of_parts(tiny: Recipes, parts: int):
    learner, seen = (
        begun(tiny(data={"patches": [{"size": 8, "batch": 4}]}, step={"accumulate": parts})),
        [],
    )
    learner.network.register_forward_hook(lambda network, inputs, output: seen.append(len(output)))
    learner.step(batch(), RATE)
    assert seen == [4 // parts] * parts


def test_the_moving_average_uses_the_recipes_decay(tiny: Recipes):
    # less than the 0.1 that the first update would keep of a longer one
    learner = begun(tiny(step={"ema": 0.05}))
    start = weights(learner.best_network)
    learner.step(batch(), RATE)
    expected = 0.05 * start + 0.95 * weights(learner.network)
    torch.testing.assert_close(weights(learner.best_network), expected, atol=1e-6, rtol=1e-5)


def test_the_result_is_the_best_validation_not_the_last(
    tiny: Recipes, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    scores: Iterator[float] = iter([30.0, 31.0, 29.0])
    monkeypatch.setattr(
        Validator,
        "validate",
        lambda self, network, step, pictured: ValidationResult(
            step, next(scores), 0.9, "esr-rgb", 2
        ),
    )
    result = fit(tiny(steps=3, validation={"every": 1}), tmp_path)
    assert (result.best_step, result.psnr) == (2, 31.0)
    assert read_checkpoint(result.weights).training["steps"] == 2


@pytest.fixture(scope="module")
def stock(tiny: Recipes) -> Stock:
    return open_stock(training_files(tiny()), tiny(), None, CPU, Processes())


def test_degradations_change_lr_and_not_hr(tiny: Recipes, stock: Stock):
    def first(**data) -> Batch:
        recipe = tiny(data=data)
        return next(batches(stock, sampler_of(recipe, stock), recipe, 0, Processes(), CPU, 0))

    plain, noisy = first(), first(degradations=[{"name": "noise", "low": 5, "high": 5}])
    assert torch.equal(noisy.hr, plain.hr)
    assert 0.01 < float((noisy.lr - plain.lr).std()) < 0.03  # of a standard deviation of 5 of 255


def test_a_named_chain_replaces_single_degradations(tiny: Recipes, stock: Stock):
    def steps(**data) -> list[Batch]:
        recipe = tiny(data=data)
        return list(batches(stock, sampler_of(recipe, stock), recipe, 0, Processes(), CPU, 0))

    plain, real, again = steps(), steps(degrade="sensor"), steps(degrade="sensor")
    assert all(torch.equal(one.hr, other.hr) for one, other in zip(plain, real, strict=True))
    assert all(torch.equal(one.lr, other.lr) for one, other in zip(again, real, strict=True))
    same = [
        torch.equal(clean, lr)
        for one, other in zip(plain, real, strict=True)
        for clean, lr in zip(one.lr, other.lr, strict=True)
    ]
    assert 0 < sum(same) < len(same) / 2  # about a quarter is clean
    with pytest.raises(
        RecipeError, match=r"data.degrade is 'sensor'; it must be empty beside data.degradations"
    ):
        tiny(data={"degrade": "sensor", "degradations": [{"name": "noise", "low": 5, "high": 5}]})


def test_reductions_add_images_that_the_largest_patch_fits_into(
    tiny: Recipes, stock: Stock, tmp_path
):
    def opened(*shares: float) -> Stock:
        recipe = tiny(data={"reductions": list(shares)})
        return open_stock(training_files(recipe), recipe, tmp_path, CPU, Processes())

    sizes = stock.sizes
    reduced = tuple(
        (math.ceil(1.5 * height) // 2, math.ceil(1.5 * width) // 2) for height, width in sizes
    )
    assert all(min(size) >= 10 for size in reduced)  # the recipe's largest patch
    assert opened(0.75).sizes == sizes + reduced
    assert opened(0.9).sizes not in (sizes, sizes + reduced)
    assert opened().sizes == opened(0.1).sizes == sizes


def test_an_image_is_reduced_where_the_largest_patch_just_fits(tiny: Recipes, tmp_path):
    # half of it, 21, makes 10 pixels of lr
    Image.fromarray(np.zeros((41, 41, 3), np.uint8)).save(tmp_path / "0.png")
    for patch, images in ((10, 2), (11, 1)):
        recipe = tiny(
            data={"train": [str(tmp_path)], "patches": [{"size": patch}], "reductions": [0.5]}
        )
        assert len(training_files(recipe)) == images


def test_a_reduction_too_small_for_all_images_gives_a_warning(tiny: Recipes, tmp_path):
    with pytest.warns(
        RepmambaWarning, match=r"No image is downsampled to 0\.1 of its size \(data\.reductions\)"
    ):
        fit(tiny(steps=1, data={"reductions": [0.1, 0.9]}), tmp_path)


def test_pixels_made_from_others_are_not_part_of_the_checksum(tiny: Recipes):
    recipe = tiny(data={"reductions": [0.75]})
    files = training_files(recipe)
    found = open_stock(files, recipe, None, CPU, Processes())
    sums = checksums(found, files)
    found.hr.pixels[found.hr.starts[-1]] += 1  # of a reduced image
    found.lr.pixels[0] += 1  # made from hr, too
    assert torch.equal(checksums(found, files), sums)
    found.hr.pixels[0] += 1
    assert not torch.equal(checksums(found, files), sums)


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ({"data": {"draw": "area"}}, {"by_area": True}),
        ({"data": {"short_batch": "keep"}}, {"keep_short": True}),
        ({"data": {"augment": ["rotations"]}}, {"augment": ("rotations",)}),
        ({"seed": 5}, {"seed": 5}),
    ],
    ids=["draw", "short_batch", "augment", "seed"],
)
def test_samples_are_drawn_by_the_recipes_options(tiny: Recipes, stock: Stock, asked, drawn):
    plain = Sampler(1234, stock.sizes, tiny().data.patches, ("flips", "transpose"))
    assert sampler_of(tiny(**asked), stock) == replace(plain, **drawn) != plain
