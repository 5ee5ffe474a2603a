"""repmamba.train and repmamba.finetune as calls, who is told of what they see, and parts of recipes
of one's own.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import repmamba
from repmamba.data.degradations import DEGRADATIONS, Chain, Degradation, Stage
from repmamba.errors import RecipeError, UsageError
from repmamba.evaluate.metrics import METRICS, Metric
from repmamba.train.curves import read_curve
from repmamba.train.losses import LOSSES
from repmamba.train.recipe_file import recipe_text


class Noting(repmamba.Callback):
    def __init__(self):
        self.seen = []

    def begin(self, recipe, folder, step):
        self.seen.append(("begin", recipe.name, folder.name, step))

    def step(self, step, values):
        self.seen.append(("step", step, dict(values)))

    def validation(self, result, *, best):
        self.seen.append(("validation", result.step, result.psnr, best))

    def picture(self, step, picture):
        self.seen.append(("picture", step, picture.copy()))

    def end(self):
        self.seen.append(("end",))

    def of(self, kind):
        return [entry[1:] for entry in self.seen if entry[0] == kind]


def test_a_callback_sees_the_curve_the_validations_and_their_pictures(
    tiny_file, tmp_path, whole_run, seen
):
    noting = Noting()
    result = repmamba.train(
        tiny_file, tmp_path / "run", log_every=1, callbacks=[noting, repmamba.Callback()]
    )
    assert seen(tmp_path / "run") == seen(whole_run)  # a callback changes nothing
    assert repr(result).startswith("<FitResult Finished after 8 steps; best ")
    lines = list(read_curve(tmp_path / "run" / "curve.jsonl"))
    assert noting.seen[0] == ("begin", "tiny", "run", 0)
    assert noting.seen[-1] == ("end",)
    steps = [line for line in lines if line["kind"] == "step"]
    assert [step for step, _ in noting.of("step")] == [line["step"] for line in steps]
    assert [values["loss"] for _, values in noting.of("step")] == [line["loss"] for line in steps]
    assert set(noting.of("step")[0][1]) == {"loss", "lr", "grad_norm", "images_per_s"}
    told = [
        (line["step"], line["psnr"], line["best"]) for line in lines if line["kind"] == "validation"
    ]
    assert noting.of("validation") == told
    for step, picture in noting.of("picture"):
        with Image.open(tmp_path / "run" / "crops" / f"step-{step:08d}.png") as written:
            np.testing.assert_array_equal(picture, np.asarray(written))
    assert [step for step, _ in noting.of("picture")] == [step for step, *_ in told]


def test_a_failing_callback_ends_the_run_which_can_go_on_without_it(
    tiny, tmp_path, whole_run, seen
):
    class Failing(Noting):
        def step(self, step, values):
            if step == 5:
                raise ConnectionError("the server is gone")

    failing = Failing()
    with pytest.raises(ConnectionError, match="the server is gone"):
        repmamba.train(tiny(), tmp_path, log_every=1, callbacks=[failing])
    assert failing.seen[-1] == ("end",)
    noting = Noting()
    assert repmamba.train(tiny(), tmp_path, log_every=1, callbacks=[noting]).finished
    assert noting.seen[0] == ("begin", "tiny", tmp_path.name, 4)  # its last save
    assert seen(tmp_path) == seen(whole_run)


def test_tensorboard_has_pictures_and_settings_too(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    repmamba.train(tiny(), tmp_path, settings={"steps": 6}, log_every=2, tensorboard=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"step/loss", "step/lr", "validation/psnr", "validation/ssim"} <= set(
        events.Tags()["scalars"]
    )
    assert [image.step for image in events.Images("validation/lr, sr, hr")] == [3, 6]
    (text,) = events.Tensors("recipe/text_summary")
    assert b"validation" in text.tensor_proto.string_val[0]


def test_a_recipe_is_a_name_a_file_tables_or_a_recipe(tiny, tiny_file, tmp_path, images):
    tables = json.loads(json.dumps(tiny().to_dict()))
    tables["data"]["train"] = (images / "train",)  # as Python has it
    results = []
    for number, recipe in enumerate((tiny(), tiny_file, str(tiny_file), tables)):
        folder = tmp_path / str(number)
        settings = {
            "steps": 2,
            "data.val": [],
            "losses": [{"name": "charbonnier", "weight": 0.5}, {"name": "fft"}],
        }
        assert repmamba.train(recipe, str(folder), settings=settings).steps == 2
        results.append((folder / "recipe.toml").read_text())
    assert len(set(results)) == 1
    assert 'name = "charbonnier"\nweight = 0.5' in results[0]
    for wrong, settings, error, text in (
        (5, {}, UsageError, "recipe is a int; it takes the name of a packaged recipe"),
        ("x5", {}, RecipeError, "x5 is neither a file nor a packaged recipe"),
        (tiny(), {"optimiser.rate": 1}, RecipeError, "optimiser.rate is not a key"),
        (tiny(), {"losses.name": "l2"}, RecipeError, "losses is a list"),
        (tiny(), {"steps": torch.ones(1)}, RecipeError, "takes numbers, text"),
    ):
        with pytest.raises(error, match=text):
            repmamba.train(wrong, tmp_path / "wrong", settings=settings)
    assert not (tmp_path / "wrong").exists()


@pytest.fixture
def parts_of_ones_own():
    """A loss, a degradation and a rule, known by their names until the test is over."""
    seen = []

    def halved_l1(sr, hr):
        seen.append(tuple(sr.shape))
        return (sr - hr).abs().mean() / 2

    def darker(image, share, generator):
        return image * (1 - share)

    def psnr(sr, pair):
        return METRICS["esr-rgb.psnr"].measure(sr, pair) + 100

    repmamba.register_loss("halved-l1", halved_l1)
    repmamba.register_degradation(Degradation("darker", "share", 0, 1, "lr", darker))
    for name, unit in (("psnr", "dB"), ("ssim", "")):
        repmamba.register_metric(Metric(f"mine.{name}", unit, True, "images", "100 dB more", psnr))
    yield seen
    del LOSSES["halved-l1"], DEGRADATIONS["darker"], METRICS["mine.psnr"], METRICS["mine.ssim"]


def test_registered_parts_can_be_named_in_a_recipe(tiny, tmp_path, parts_of_ones_own):
    settings = {
        "losses": [{"name": "halved-l1"}],
        "data.degradations": [{"name": "darker", "low": 0.5, "high": 0.5}],
        "validation.rule": "mine",
    }
    result = repmamba.train(tiny(), tmp_path, settings=settings)
    assert result.psnr > 100
    assert parts_of_ones_own
    assert 'name = "halved-l1"' in (tmp_path / "recipe.toml").read_text()
    hr = np.full((4, 4, 3), 200, np.uint8)
    assert (Chain(2, (Stage("darker", 0.5, 0.5),))(hr, np.random.default_rng(0)) == 100).all()


def test_unregistered_names_are_refused_with_the_known_ones(tiny):
    with pytest.raises(
        RecipeError, match=r"losses\.name is 'halved-l1'; it must be one of l1, l2, .*gradient"
    ):
        tiny(losses=[{"name": "halved-l1"}])
    with pytest.raises(
        RecipeError, match=r"validation\.rule is 'consistency'; it must be one of .*esr-rgb"
    ):
        tiny(validation={"rule": "consistency"})
    with pytest.raises(RecipeError, match="There is no degradation darker; choose among blur"):
        tiny(data={"degradations": [{"name": "darker", "low": 0.0, "high": 1.0}]})


def test_names_are_given_once_and_results_are_checked(tiny, tmp_path, parts_of_ones_own):
    for register, taken in (
        (lambda: repmamba.register_loss("l1", torch.nn.L1Loss()), "A loss named l1 already exists"),
        (lambda: repmamba.register_loss("a b", torch.nn.L1Loss()), "a name without spaces"),
        (lambda: repmamba.register_loss("mine", 5), "a function of sr and hr"),
        (
            lambda: repmamba.register_degradation(DEGRADATIONS["blur"]),
            "A degradation blur already exists",
        ),
        (
            lambda: repmamba.register_degradation(Degradation("x", "", 1, 0, "lr", None)),
            "its range must ascend",
        ),
        (
            lambda: repmamba.register_degradation(Degradation("x", "", 0, 1, "sr", None)),
            "must work on 'hr' or 'lr'",
        ),
    ):
        with pytest.raises(UsageError, match=taken):
            register()
    repmamba.register_loss("map", lambda sr, hr: (sr - hr).abs())
    try:
        with pytest.raises(
            RecipeError, match=r"The loss map returned a tensor of shape \(2, 3, 16, 16\)"
        ):
            repmamba.train(tiny(), tmp_path, settings={"losses": [{"name": "map"}]})
    finally:
        del LOSSES["map"]


def test_a_recipe_with_registered_parts_is_written_and_read_again(
    tiny, parts_of_ones_own, tmp_path
):
    recipe = tiny(losses=[{"name": "halved-l1", "weight": 2.0}])
    (tmp_path / "mine.toml").write_text(recipe_text(recipe))
    from repmamba.train.recipe_file import read_recipe

    assert read_recipe(tmp_path / "mine.toml") == recipe
