"""The compiled passes of the fused network against its own operations in torch, which are what fusion.py says."""

import copy
import gc
import threading
import time
import weakref
from collections.abc import Callable

import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from repmamba.errors import ShapeMismatch
from repmamba.network import inference_cpu, inference_stages
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import ShiftedNorm, fuse
from repmamba.network.repmamba import RepMamba
from repmamba.scan.backends import VARIABLE
from repmamba.scan.vector_code import under_the_name_of_this_version

CONFIGS = (
    NetworkConfig(depths=(1,)),
    NetworkConfig(depths=(1,), scale=3, mlp_ratio=1.5),
    NetworkConfig(depths=(1,), cssp=False, scale=2),
    NetworkConfig(depths=(1,), mlp_ratio=1.2),  # 76 hidden channels fill no whole registers
    NetworkConfig(depths=(2, 1), patch_norm=False),
    NetworkConfig(depths=(1,), scale=1, upsampler="none"),
    NetworkConfig(depths=(1,), resi_connection="3conv"),
    NetworkConfig(depths=(1,), upsampler="nearest+conv", in_chans=4),
)

MOST_SECONDS = 60.0  # that a thread is waited for, which never takes a second


@pytest.fixture(autouse=True)
def threads_as_before():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plainly(network: nn.Module, image: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(inference_cpu, "serves", lambda *tensors: False)
        result: Tensor = network(image)
    return result


def relative_difference(result: Tensor, expected: Tensor) -> float:
    assert result.isfinite().all()
    assert result.shape == expected.shape
    return ((result - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the passes that run."""
    names: list[str] = []

    def noted(stages, *arguments):
        names.extend(stage.kernel.__name__ for stage in stages)
        inference_stages.run(stages, *arguments)

    monkeypatch.setattr(inference_cpu, "run", noted)
    return names


@settings(max_examples=30)
@given(
    config=sampled_from(CONFIGS),
    seed=integers(0, 1 << 30),
    batch=integers(1, 3),
    height=integers(1, 19),
    width=integers(1, 19) | integers(120, 140),  # around the pieces in which a convolution takes a row
)
def test_compiled_equals_plain(shaken, config, seed, batch, height, width):
    fused = fuse(shaken(config, seed=seed))
    image = torch.rand(batch, config.in_chans, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        result = fused(image)
    with pytest.MonkeyPatch.context() as patch:
        expected = plainly(fused, image, patch)
    assert relative_difference(result, expected) < 1e-5


def test_all_stages_are_compiled(shaken, passes):
    with torch.no_grad():
        fuse(shaken(CONFIGS[0]))(torch.rand(1, 3, 4, 4))
    block = ["front", "forward", "tail"] * 4 + ["feed_forward"]
    assert passes == ["first_convolution", *block, *["convolution"] * 3]


def test_the_result_does_not_depend_on_the_number_of_threads(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(3, 3, 70, 34)  # three threads share its rows within images
    results = []
    with torch.no_grad():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fused(image))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_calls_from_several_threads_do_not_meet(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    images = [torch.rand(1, 3, size, 20) for size in (12, 30, 22, 8)]
    with torch.no_grad():
        expected = [fused(image) for image in images]
    wrong = []

    def check(image: Tensor, right: Tensor) -> None:
        with torch.no_grad():
            wrong.extend(image.shape for _ in range(5) if not torch.equal(fused(image), right))

    threads = [threading.Thread(target=check, args=pair) for pair in zip(images, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(MOST_SECONDS)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_buffers_kept_between_calls_carry_nothing_over(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 6, 10)
    with torch.no_grad():
        expected = fused(image)
        fused(torch.full((2, 3, 40, 30), torch.nan))
        assert torch.equal(fused(image), expected)


def test_changed_weights_are_seen(shaken, monkeypatch):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 6, 10)
    with torch.no_grad():
        before = fused(image)
        for values in [*fused.parameters(), *fused.buffers()]:
            values.mul_(0.9)
        after = fused(image)
    assert not torch.allclose(before, after)
    assert relative_difference(after, plainly(fused, image, monkeypatch)) < 1e-5
    fused.load_state_dict(fuse(shaken(CONFIGS[0])).state_dict())
    with torch.no_grad():
        assert torch.equal(fused(image), before)
    for values in [*fused.parameters(), *fused.buffers()]:
        values.data.mul_(0.9)  # which no version of theirs tells
    with torch.no_grad():
        assert torch.equal(fused(image), after)


def test_changed_weights_that_have_no_versions_are_seen(shaken):
    image = torch.rand(1, 3, 6, 10)
    with torch.inference_mode():
        fused, other = (fuse(shaken(CONFIGS[0], seed=seed)) for seed in (0, 1))
        before, expected = fused(image), other(image)
        fused.load_state_dict(other.state_dict())
        assert torch.equal(fused(image), expected)
    assert not torch.allclose(before, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_is_watched_or_of_another_kind_runs_in_torch(shaken, passes):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 4, 6)
    with FlopCounterMode(display=False), torch.no_grad():
        fused(image)
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        fused(image)
    with torch.no_grad():
        torch.jit.trace(fused, (image,), check_trace=False)
        copy.deepcopy(fused).double()(image.double())
        of_others = copy.deepcopy(fused)
        of_others.groups[0].blocks[0].ffn.fc1.__class__ = Linear
        of_others(image)
        of_another_eps = copy.deepcopy(fused)
        of_another_eps.embed_norm.eps = 1.0
        of_another_eps(image)
    for changed in (fused.groups[0].conv, fused):
        hook = changed.register_forward_hook(lambda *arguments: None)
        with torch.no_grad():
            fused.forward(image)
        hook.remove()
    assert passes == []
    with torch.no_grad():
        fused(image)
    assert passes


class Linear(nn.Linear):
    """A layer of somebody else, as quantisation puts in the place of torch's."""


def test_transforms_of_torch_see_its_own_operations(shaken):
    fused, image = fuse(shaken(CONFIGS[0])), torch.rand(1, 3, 4, 6)
    served = []

    def seen(image: Tensor) -> Tensor:
        served.append(inference_cpu.serves(fused, image))
        return image

    torch.func.vmap(seen)(image[None])
    torch.func.jvp(seen, (image,), (image,))
    with forward_ad.dual_level():
        seen(forward_ad.make_dual(image, image))
    assert served == [False] * 3


def test_an_image_that_is_negative_by_a_bit_alone_is_seen_so(shaken):
    fused, image = fuse(shaken(CONFIGS[0])), torch.complex(torch.zeros(1, 3, 4, 6), torch.rand(1, 3, 4, 6)).conj().imag
    assert image.is_neg()
    with torch.no_grad():
        assert torch.equal(fused(image), fused(image.resolve_neg()))


@pytest.mark.parametrize("default", ["type", "device"])
def test_what_torch_makes_by_default_changes_nothing(shaken, default):
    fused, image = fuse(shaken(CONFIGS[0])), torch.rand(1, 3, 4, 6)
    torch.set_default_dtype(torch.float64 if default == "type" else torch.float32)
    try:
        with torch.device("meta" if default == "device" else "cpu"), torch.no_grad():
            result = fused(image)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        assert torch.equal(result, fused(image))


def test_where_another_scan_is_chosen_no_kernels_are_loaded(shaken, monkeypatch):
    monkeypatch.setenv(VARIABLE, "chunked")
    monkeypatch.setattr(inference_cpu, "_kernels", lambda: pytest.fail("They take time to compile."))
    with torch.no_grad():
        fuse(shaken(CONFIGS[0]))(torch.rand(1, 3, 4, 6))


def test_another_scan_is_called_by_torch(shaken, passes):
    fused = fuse(shaken(CONFIGS[0]))
    fused.groups[0].blocks[0].cssp.m8.backend = "chunked"
    with torch.no_grad():
        fused(torch.rand(1, 3, 4, 6))
    assert passes == []


def test_no_operation_of_torch_computes_beside_the_passes(shaken):
    """They would start torch's threads, which spin for a while on the cores that the passes compute on."""
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        fused(image)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            fused(image)
    views = {"alias", "as_strided", "detach", "empty", "permute", "resolve_conj", "resolve_neg", "slice", "to"}
    assert {event.name.removeprefix("aten::") for event in profile.events()} <= views


def test_a_replaced_weight_or_part_is_seen(shaken, monkeypatch):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 6, 10)
    results = []
    with torch.no_grad():
        results.append(fused(image))
        norm = fused.embed_norm
        norm.weight = nn.Parameter(2 * norm.weight, requires_grad=False)
        results.append(fused(image))
        fused.groups[0] = fuse(shaken(CONFIGS[0], seed=1)).groups[0]
        results.append(fused(image))
    assert not torch.allclose(results[0], results[1])
    assert not torch.allclose(results[1], results[2])
    assert relative_difference(results[2], plainly(fused, image, monkeypatch)) < 1e-5


def test_a_failure_in_another_thread_is_raised_and_not_waited_for(shaken, monkeypatch):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 70, 70)
    torch.set_num_threads(2)
    caller = threading.get_ident()

    def failing(*arguments):
        if threading.get_ident() != caller:
            raise MemoryError("no scratch")
        while not arguments[1].base[-1]:  # leave the shares to the other one
            time.sleep(0.001)

    monkeypatch.setattr(inference_stages, "_share", failing)
    with torch.no_grad(), pytest.raises(MemoryError, match="no scratch"):
        fused(image)
    monkeypatch.undo()
    with torch.no_grad():
        assert fused(image).isfinite().all()


def test_an_interrupted_call_ends_when_no_thread_writes_into_its_maps_any_more(shaken, monkeypatch):
    fused = fuse(shaken(CONFIGS[0]))
    torch.set_num_threads(2)
    caller, begun, ended = threading.get_ident(), threading.Event(), []

    def interrupted(*arguments):
        if threading.get_ident() == caller:
            assert begun.wait(MOST_SECONDS)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.1)
        ended.append(True)

    monkeypatch.setattr(inference_stages, "_share", interrupted)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        fused(torch.rand(1, 3, 70, 70))
    assert ended == [True]
    assert not inference_cpu._memory.passes


def test_a_call_ends_without_the_help_of_other_threads(shaken, monkeypatch):
    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 70, 70)
    with torch.no_grad():
        expected = fused(image)
    torch.set_num_threads(3)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr("repmamba.scan.threads._pool", lambda process: Busy())
        assert torch.equal(fused(image), expected)


class Busy:
    """A pool that never comes to its work."""

    def submit(self, function: Callable[..., None]) -> None:
        """Forget the function."""


def test_under_bfloat16_products_are_rounded_and_nothing_else(shaken, passes, monkeypatch):
    from repmamba.network import inference_numba as kernels

    fused = fuse(shaken(CONFIGS[0]))
    image = torch.rand(1, 3, 20, 136)
    expected = plainly(fused, image, monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        by_torch = plainly(fused, image, monkeypatch)
        with torch.no_grad():
            result = fused(image)
    assert bool(passes) == kernels.HAS_PAIRS
    difference, usual = (relative_difference(x.float(), expected) for x in (result, by_torch))
    assert difference < 2e-2
    if kernels.HAS_PAIRS:
        assert result.dtype == torch.float32
        assert 1e-4 < difference < usual
        with torch.no_grad():
            assert relative_difference(fused(image), expected) < 1e-5


def test_without_pairs_bfloat16_is_left_to_torch(monkeypatch):
    from repmamba.network import inference_numba as kernels

    fused, image = fuse(RepMamba(CONFIGS[0])), torch.zeros(1, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert inference_cpu.serves(fused, image) == kernels.HAS_PAIRS
        monkeypatch.setattr(kernels, "HAS_PAIRS", False)
        assert not inference_cpu.serves(fused, image)


@pytest.fixture(params=["pairs", "amx"])
def product_of_pairs(request: pytest.FixtureRequest) -> Callable[..., None]:
    """result = x weight, by either instruction."""
    from repmamba.network import inference_numba as kernels
    from repmamba.network.inference_amx import product_code_of_amx

    if request.param == "amx":
        if not kernels.HAS_AMX:
            pytest.skip("this processor has no AMX")
        code = product_code_of_amx("zero", kernels._as_it_is)
    else:
        if not kernels.HAS_PAIRS:
            pytest.skip("this processor has no products of bfloat16")
        code = kernels._product_code("zero", kernels._as_it_is, pairs=True)

    @numba.njit
    def product(count, x, weight, outputs, result):
        code(count, x, weight, outputs, result, result)

    compiled: Callable[..., None] = product
    return compiled


@pytest.mark.parametrize(
    ("count", "inputs", "outputs"), [(1, 32, 16), (13, 64, 48), (32, 96, 128), (45, 512, 32), (70, 128, 144)]
)
def test_a_product_of_pairs_is_that_of_the_rounded_factors(product_of_pairs, count, inputs, outputs):
    x, weight = torch.randn(count, inputs), torch.randn(inputs, outputs)
    result = torch.full((count + 1, outputs), torch.pi)
    product_of_pairs(count, x.numpy(), inference_cpu._pairs(weight.numpy()), outputs, result.numpy())
    expected = x.bfloat16().double() @ weight.bfloat16().double()
    assert relative_difference(result[:count].double(), expected) < 1e-6
    assert (result[count] == torch.pi).all()  # what stands behind the last row stays


@pytest.mark.parametrize(("width", "inputs", "outputs"), [(2, 64, 64), (37, 64, 48), (64, 32, 16), (97, 96, 32)])
def test_a_row_of_a_convolution_by_amx_is_that_of_the_rounded_factors(width, inputs, outputs):
    from repmamba.network import inference_numba as kernels

    if not kernels.HAS_AMX:
        pytest.skip("this processor has no AMX")
    image, weight = torch.randn(1, inputs, 3, width + 2), torch.randn(outputs, inputs, 3, 3)
    bias, skip, slope = torch.randn(outputs), torch.randn(width, outputs), 0.2
    rows = []
    for row in image[0].permute(1, 2, 0):
        pairs = torch.full((width + 2 + kernels.BEHIND, inputs // 2), torch.nan)  # behind the pixels: not used
        kernels.paired(width + 2, inputs, row.contiguous().numpy(), pairs.numpy())
        rows.append(pairs.numpy())
    matrix = inference_cpu._pairs(weight.permute(2, 3, 1, 0).flatten(0, 2).numpy())
    result = torch.empty(width, outputs)

    kernels.convolved(width, *rows, matrix, outputs, bias[None].numpy(), skip.numpy(), slope, result.numpy())

    exact = nn.functional.conv2d(image.bfloat16().double(), weight.bfloat16().double(), bias.double())
    expected = nn.functional.leaky_relu(exact[0, :, 0].T + skip, slope)
    assert relative_difference(result.double(), expected) < 1e-6


@pytest.mark.parametrize("channels", [8, 16, 64])
def test_pairs_are_the_numbers_rounded_to_bfloat16(channels):
    from repmamba.network import inference_numba as kernels

    x = torch.randn(5, channels)
    pairs, back = torch.empty(5, channels // 2), torch.empty(5, channels)
    kernels.paired(5, channels, x.numpy(), pairs.numpy())
    kernels.unpaired(5, channels, pairs.numpy(), back.numpy())
    assert torch.equal(back, x.bfloat16().float())


def test_gradients_of_the_image_are_those_of_the_unfused_network(shaken, passes):
    network = shaken(CONFIGS[0])
    images = [torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    for module, image in zip((network, fuse(network)), images, strict=True):
        module(image).square().sum().backward()
    assert passes == []
    assert relative_difference(images[1].grad, images[0].grad) < 1e-4


def test_inference_mode_is_served(shaken, passes):
    with torch.inference_mode():
        fuse(shaken(CONFIGS[0]))(torch.rand(1, 3, 4, 6))
    assert passes


@pytest.mark.parametrize("value", [-100.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 100.0])
def test_gelu_and_silu_are_exact_far_from_zero_too(value):
    """Through the products of a gate and of a ConvFFN that give `value` everywhere."""
    from repmamba.network import inference_numba as kernels

    x, weight = torch.zeros(3, 1).numpy(), torch.zeros(1, 16).numpy()
    bias, result = torch.full((1, 16), value), torch.ones(3, 16)  # a gate multiplies what stands there
    for kernel, function in (
        (kernels.product_gate, nn.functional.silu),
        (kernels.product_gelu, nn.functional.gelu),
    ):
        kernel(3, x, weight, 16, bias.numpy(), result.numpy())
        expected = function(bias.double()).expand(3, 16)
        assert (result - expected).abs().max() <= 2e-7 * max(1.0, abs(value))


def test_kernels_with_vector_code_of_another_file_are_cached_under_its_version():
    """Numba's cache looks at the file of a kernel alone, and would serve what an older `Vectors` wrote."""
    from repmamba.network import inference_numba as kernels
    from repmamba.scan.vector_code import VERSION

    compiled = [kernel for kernel in vars(kernels).values() if getattr(kernel, "nopython_signatures", None)]
    plain = {"carve", "of_pairs", "shuffled_rows"}
    named = {kernel.__name__: kernel.py_func.__qualname__ for kernel in compiled if kernel.__name__ not in plain}
    assert set(named) > {"front", "tail", "feed_forward", "convolution", "first_convolution", "product", "claimed"}
    assert [name for name, full in named.items() if VERSION not in full] == []


def test_constants_of_other_files_are_in_the_name_of_what_is_cached():
    names = []
    for constant in (1e-5, 1e-6):

        def kernel() -> None:
            """Nothing."""

        names.append(under_the_name_of_this_version(kernel, constant).__qualname__)
    assert len(set(names)) == 2


@pytest.mark.parametrize("config", CONFIGS)
def test_every_width_that_is_normalised_has_its_code(config):
    from repmamba.network import inference_numba as kernels

    fused = fuse(RepMamba(config))
    widths = {norm.width for norm in fused.modules() if isinstance(norm, ShiftedNorm)}
    widths |= {norm.normalized_shape[0] for norm in fused.modules() if isinstance(norm, nn.LayerNorm)}
    assert widths <= set(kernels.WIDTHS)


def test_a_width_without_code_is_refused_rather_than_left_unwritten():
    with pytest.raises(ShapeMismatch, match="has 24 channels"):
        inference_cpu._affine(ShiftedNorm(24), 24)


def test_maps_go_with_their_network(shaken):
    fused = fuse(shaken(CONFIGS[0]))
    with torch.no_grad():
        fused(torch.rand(1, 3, 6, 10))
    (_, passes), *others = inference_cpu._memory.passes.values()
    there = weakref.ref(passes)
    assert others == []
    del passes, fused
    gc.collect()
    assert there() is None


def test_many_maps_do_not_stay_until_the_next_call(shaken, monkeypatch):
    monkeypatch.setattr(inference_cpu, "LARGEST_KEPT", 1000)
    with torch.no_grad():
        fuse(shaken(CONFIGS[0]))(torch.rand(1, 3, 6, 10))
    assert not inference_cpu._memory.passes


def test_what_one_shape_took_is_given_back_before_another_takes_its_own(monkeypatch):
    network, made, there = fuse(RepMamba(CONFIGS[0])), [], []

    class Noted(inference_cpu.Passes):
        def __init__(self, *arguments, **keywords):
            there.append([passes() is not None for passes in made])
            super().__init__(*arguments, **keywords)
            made.append(weakref.ref(self))

    monkeypatch.setattr(inference_cpu, "Passes", Noted)
    with torch.inference_mode():
        for side in (8, 10, 10, 8):
            network(torch.rand(1, 3, side, side))
    assert there == [[], [False], [False, False]]


def test_an_unfused_network_is_left_to_torch(passes):
    with torch.no_grad():
        RepMamba(CONFIGS[0]).eval()(torch.rand(1, 3, 4, 4))
    assert passes == []
