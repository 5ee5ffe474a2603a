"""Recipes: read, refused in one line, counted in steps."""

import errno
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis.strategies import characters, floats, integers, sampled_from, text

from repmamba.errors import RecipeError
from repmamba.inference.catalogue import find_weights, packaged_weights
from repmamba.network.checkpoint import read_checkpoint
from repmamba.train.losses import LOSSES
from repmamba.train.recipe import Data, Optimiser, Recipe, Schedule
from repmamba.train.recipe_file import build, packaged, read_recipe, recipe_text


@pytest.mark.parametrize("name", packaged())
def test_a_packaged_recipe_is_read_and_survives_being_written(name):
    recipe = read_recipe(name)
    assert recipe.name == name
    assert build(tomllib.loads(recipe_text(recipe))) == recipe
    assert build(recipe.to_dict()) == recipe


def runs(training):
    """What the file of weights says of their training, and of the trainings that they began from,
    the last first.
    """
    while training:
        yield training
        training = training.get("begun_from", {}).get("training")


@pytest.mark.parametrize("name", [weights.name for weights in packaged_weights()])
def test_packaged_weights_hold_the_recipes_that_made_them_and_these_can_be_read(name):
    *later, first = runs(read_checkpoint(find_weights(name).path).training)
    for facts in [*later, first] if "recipe" in first else later:
        recipe = build(facts["recipe"])
        assert build(tomllib.loads(recipe_text(recipe))) == recipe
        assert 0 < facts["steps"] <= recipe.steps


def test_the_published_recipe_is_that_of_the_specification():
    recipe = read_recipe("published")
    assert recipe.step.surplus_step is False
    assert recipe.step.clip == 0
    assert recipe.step.ema == 0
    assert (recipe.optimiser.decay, recipe.optimiser.weight_decay, recipe.optimiser.eps) == (
        "all",
        0.01,
        1e-8,
    )
    steps = recipe.in_steps(188)
    assert steps.steps == 188_000
    ends = [500, 800, 900, 950]
    rates = [steps.rate(epoch * 188 - 1) for epoch in ends] + [
        steps.rate(epoch * 188) for epoch in ends
    ]
    assert rates == [2e-4, 1e-4, 5e-5, 2.5e-5, 1e-4, 5e-5, 2.5e-5, 1.25e-5]
    assert steps.checkpoints.archive == 50 * 188


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optimiser.lrr=1", r"optimiser.lrr is not a key.*lr, betas.*Did you mean lr\?"),
        ("nonsense=1", "nonsense is not a key of a recipe; allowed here: name, steps"),
        ("optimiser.lr=fast", "optimiser.lr is 'fast'; it must be a number"),
        ("optimiser.lr=0", "optimiser.lr is 0.0; it must be above 0"),
        ("optimiser.betas=[0.9]", r"optimiser.betas is \[0.9\]; it must be a list of 2"),
        ("steps=1.5", "steps is 1.5; it must be a whole number"),
        ("steps=true", "steps is True; it must be a whole number"),
        ("steps=0", "steps is 0; it must be at least 1"),
        ("step.compile=1", "step.compile is 1; it must be true or false"),
        ("step.precision=fp16", "step.precision is 'fp16'; it must be one of float32, bf16"),
        ("validation.rule=psnr", "validation.rule is 'psnr'; it must be one of published, ttst-y"),
        ("data.augment=flips", "data.augment is 'flips'; it must be a list"),
        (
            'data.augment=["flip"]',
            "data.augment is 'flip'; it must be one of flips, transpose, rotations",
        ),
        (
            "data.reductions=[0.5, 1.0]",
            r"data.reductions is \(0.5, 1.0\); it must be between 0 and 1",
        ),
        (
            "data.reductions=[0.5, 0.5]",
            r"data.reductions is \(0.5, 0.5\); it must be different from each other",
        ),
        (
            "data.patches=[{start=3}]",
            r"data.patches.start is \[3\]; it must be 0 for the first phase",
        ),
        ("data.patches=[{size=1}]", "data.patches.size is 1; it must be at least 2"),
        (
            "data.patches=[{batch=3}]",
            "data.patches.batch is 3; it must be a multiple of step.accumulate, 2",
        ),
        ("data.patches.size=3", "data.patches.size cannot be set: patches is a list"),
        (
            'data.degradations=[{name="fog",low=0,high=1}]',
            "^data.degradations: There is no degradation fog",
        ),
        (
            'data.degradations=[{name="blur",low=2,high=1}]',
            "^data.degradations: The range of blur is 2 to 1",
        ),
        (
            "data.degrade=fog",
            "^data.degrade is 'fog'; it must be one of sensor, mild, middle, strong",
        ),
        ("network.scale=5", "^network.scale is 5"),
        ("network.in_chans=0", "^network.in_chans is 0; expected 1 to"),
        ("divergence=inf", "^divergence is inf; it must be finite"),
        ("optimiser.lr=1e999", "^optimiser.lr is inf; it must be finite"),
        ("optimiser.eps=nan", "^optimiser.eps is nan; it must be above 0"),
        ('losses=[{name="l1", weight=inf}]', "^losses.weight is inf; it must be finite"),
        (
            'losses=[{name="l1"}, {name="fft"}, {name="l1", weight=2}]',
            r"^losses.name is \['l1', 'fft', 'l1'\]; .* different",
        ),
        ("network=4", "network.* is 4; it must be a table of scale"),
        ("losses=[]", r"losses is \[\]; it must be at least one"),
        ('losses=[{name="ssim"}]', "losses.name is 'ssim'; it must be one of l1"),
        ("checkpoints.keep=1", "checkpoints.keep is 1; it must be at least 2"),
        ("schedule.milestones=[5, 3]", "schedule.milestones .* must be growing"),
        ("schedule.descent=-1", "schedule.descent is -1; it must be at least 0"),
        ("schedule.descent=100001", "schedule.descent is 100001; it must be at most steps, 100000"),
        ("schedule.kind=cosine", "schedule.descent is 15000; it must be 0 for a cosine"),
        ("seed", "'seed' is not of the form KEY=VALUE"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it_and_what_is_allowed(setting, expected):
    with pytest.raises(RecipeError, match=expected) as refused:
        read_recipe("x4", ["step.accumulate=2", setting])
    assert "\n" not in str(refused.value)


def refused(path, encoding):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_missing_invalid_or_unreadable_recipes_are_one_line(tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"')
    with pytest.raises(RecipeError, match="steps is missing"):
        read_recipe(file)
    file.write_text("name = ")
    with pytest.raises(RecipeError, match=r"mine.toml is not TOML"):
        read_recipe(file)
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError, match=r"mine.toml is not TOML: 'utf-8' codec"):
        read_recipe(file)
    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(RecipeError, match=r"mine.toml cannot be read: Permission denied"):
        read_recipe(file)
    monkeypatch.undo()
    with pytest.raises(
        RecipeError,
        match=f"neither a file nor a packaged recipe; the packaged recipes are {', '.join(packaged())}",
    ):
        read_recipe(tmp_path / "yours.toml")


def test_settings_override_the_file_and_plain_text_needs_no_quotes():
    recipe = read_recipe(
        "x4", ["name=other", "optimiser.lr=1e-4", "schedule.warmup=7", 'data.train=["a", "b"]']
    )
    assert (recipe.name, recipe.optimiser.lr, recipe.schedule.warmup) == ("other", 1e-4, 7)
    assert recipe.data.train == ("a", "b")


@given(name=text(characters(exclude_categories=["Cs"]), min_size=1))
@example('\U0001f6f0 \x7f \x00 " \\ \n')
def test_any_text_survives_being_written(name):
    recipe = Recipe(name, 1, data=Data(train=(name,)))
    assert build(tomllib.loads(recipe_text(recipe))) == recipe


def test_differences_are_named_key_by_key():
    ours = read_recipe("x4")
    assert ours.differences(ours) == []
    changed = read_recipe("x4", ["optimiser.lr=1e-5", "seed=3"])
    assert ours.differences(changed) == ["optimiser.lr: 0.0006 -> 1e-05", "seed: 1234 -> 3"]


def test_every_loss_of_the_table_is_allowed_in_a_recipe():
    for name in LOSSES:
        assert read_recipe("x4", [f'losses=[{{name="{name}", weight=2}}]']).losses[0].name == name


@given(
    steps=integers(1, 500),
    warmup=integers(0, 600),
    kind=sampled_from(["constant", "cosine"]),
    share=floats(0, 1),
)
def test_a_rate_stays_between_zero_and_the_optimisers(steps, warmup, kind, share):
    descent = round(share * steps) if kind == "constant" else 0
    schedule = Schedule(
        kind=kind, warmup=warmup, milestones=(steps // 2,), floor=0.0, descent=descent
    )
    recipe = Recipe("r", steps, schedule=schedule, optimiser=Optimiser(lr=0.5))
    rates = [recipe.rate(step) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)


def test_a_run_that_is_too_short_names_what_it_does_not_reach():
    short = ["steps=300", "schedule.warmup=300", "schedule.descent=0"]
    short.append("data.patches=[{start=0}, {start=299}, {start=400}]")
    assert read_recipe("x4", short).never_reached() == [
        "schedule.warmup: 300",
        "data.patches.start: 400",
    ]
    assert read_recipe("published").never_reached() == []
    assert read_recipe("published", ["steps=900"]).never_reached() == [
        "schedule.milestones: 900",
        "schedule.milestones: 950",
    ]


def test_a_cosine_starts_at_the_rate_and_ends_near_its_floor():
    recipe = Recipe(
        "r", 1000, schedule=Schedule("cosine", warmup=10, floor=0.1), optimiser=Optimiser(lr=1.0)
    )
    assert recipe.rate(0) == pytest.approx(0.1)
    assert recipe.rate(9) == pytest.approx(1.0)
    assert recipe.rate(10) == pytest.approx(1.0)
    assert recipe.rate(505) == pytest.approx(0.55)
    assert recipe.rate(999) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 989 / 990)))


def test_a_descent_falls_from_the_constant_rate_by_one_minus_the_root_at_the_very_end():
    schedule = Schedule("constant", warmup=10, descent=100, floor=0.2)
    recipe = Recipe("r", 1000, schedule=schedule, optimiser=Optimiser(lr=1.0))
    assert [recipe.rate(step) for step in (9, 500, 900)] == [1.0] * 3
    assert recipe.rate(925) == pytest.approx(0.2 + 0.8 * (1 - 0.5))
    assert recipe.rate(999) == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(0.99)))
    assert recipe.in_steps(7) == recipe
    epochs = replace(recipe, unit="epoch").in_steps(7)
    assert (epochs.schedule.descent, epochs.rate(6475)) == (700, recipe.rate(925))


def test_a_recipe_matches_a_run_whose_end_is_moved_in_time():
    kept = read_recipe("x4")
    for settings, done, same in [
        (["steps=52000", "schedule.descent=10000"], 42000, True),  # descends from here
        # the first step of a descent still has the full rate
        (["steps=52000", "schedule.descent=10000"], 42001, True),
        (["steps=52000", "schedule.descent=10000"], 42002, False),
        (["steps=400000", "schedule.floor=0.1"], 85001, True),
        (["steps=400000"], 85002, False),  # the old descent has begun
        (["steps=40000"], 40001, False),
        (["steps=400000", "seed=1"], 0, False),
    ]:
        assert read_recipe("x4", settings).same_until(kept, done) == same
