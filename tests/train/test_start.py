"""Initial weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from repmamba.errors import CheckpointError, RecipeError
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba
from repmamba.train.distributed import Processes
from repmamba.train.learner import Learner
from repmamba.train.monitor import heading
from repmamba.train.recipe import Start
from repmamba.train.start import bilinear_kernels, start_bilinear, weights_for


def small(scale: int, **options) -> NetworkConfig:
    return NetworkConfig(scale=scale, depths=(1,), **options)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_bilinear_start_upsamples_bilinearly_inside(scale, bands):
    torch.manual_seed(0)
    network = RepMamba(small(scale, in_chans=bands)).eval()
    start_bilinear(network)
    image = torch.rand(1, bands, 8, 10)
    with torch.inference_mode():
        result = network(image)
    expected = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
    inside = (..., slice(scale, -scale), slice(scale, -scale))
    torch.testing.assert_close(result[inside], expected[inside], atol=1e-5, rtol=0)


def test_a_bilinear_start_leaves_the_body_free_to_learn():
    torch.manual_seed(0)
    network = RepMamba(small(2)).train()
    start_bilinear(network)
    image, truth = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (network(image) - truth).square().mean().backward()
        optimiser.step()
    assert float(network.groups[0].conv.weight.grad.abs().max()) > 0


def test_every_part_of_a_bilinear_kernel_adds_up_to_one():
    for scale in (2, 3, 4):
        torch.testing.assert_close(bilinear_kernels(scale).sum((1, 2)), torch.ones(scale**2))


def test_a_bilinear_start_is_refused_for_other_networks():
    with pytest.raises(RecipeError, match=r"start\.kind is bilinear"):
        start_bilinear(RepMamba(small(4, upsampler="pixelshuffle")))


def saved(tmp_path, config: NetworkConfig, seed: int = 1) -> tuple[RepMamba, str]:
    torch.manual_seed(seed)
    network = RepMamba(config).eval()
    return network, str(
        write_checkpoint(tmp_path / f"from{seed}.safetensors", Checkpoint.of(network))
    )


def test_a_run_starts_from_the_mean_of_several_weights_and_records_them(tiny, tmp_path):
    recipe = tiny(step={"ema": 0.9})
    several = [saved(tmp_path, recipe.network, seed) for seed in (1, 2, 3)]
    paths = [path for _, path in several]
    recipe = replace(recipe, start=Start(weights=paths[0], mean_with=tuple(paths[1:])))
    learner = Learner(recipe, torch.device("cpu"), Processes())
    states = [network.state_dict() for network, _ in several]
    for name, tensor in learner.network.state_dict().items():
        expected = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
    assert learner.begun_from["weights"] == paths[0]
    assert [each["weights"] for each in learner.begun_from["mean_with"]] == paths[1:]
    lines = heading(recipe, torch.device("cpu"), Processes())
    assert any(
        f"begun from the mean of {paths[0]} and {paths[1]} and {paths[2]}" in line for line in lines
    )


def test_a_mean_without_weights_is_refused():
    with pytest.raises(RecipeError, match=r"start\.mean_with is .*none without start\.weights"):
        Start(mean_with=("x4",))


def begun(config: NetworkConfig, path: str) -> RepMamba:
    network = RepMamba(config)
    network.load_state_dict(weights_for(config, path))
    return network.eval()


def test_x4_weights_start_x2_with_the_mean_of_their_result(tmp_path):
    network, path = saved(tmp_path, small(4))
    image = torch.rand(1, 3, 8, 6)
    with torch.inference_mode():
        torch.testing.assert_close(
            begun(small(2), path)(image), F.avg_pool2d(network(image), 2), atol=1e-5, rtol=0
        )


def test_x4_weights_start_x3_with_their_result_resampled_by_area(tmp_path):
    network, path = saved(tmp_path, small(4))
    image = torch.rand(1, 3, 4, 6)
    with torch.inference_mode():
        # 12 parts per pixel: for 3 and for 4
        finest = network(image).repeat_interleave(3, 2).repeat_interleave(3, 3)
        torch.testing.assert_close(
            begun(small(3), path)(image), F.avg_pool2d(finest, 4), atol=1e-5, rtol=0
        )


def test_weights_of_the_same_scale_do_not_change(tmp_path):
    network, path = saved(tmp_path, small(2))
    image = torch.rand(1, 3, 5, 6)
    with torch.inference_mode():
        assert torch.equal(begun(small(2), path)(image), network(image))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    _, path = saved(tmp_path, small(4))
    with pytest.raises(CheckpointError):
        weights_for(NetworkConfig(scale=4, depths=(1, 1)), path)
    with pytest.raises(CheckpointError, match="There are no weights 'nowhere'"):
        weights_for(small(4), "nowhere")
