import re
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from repmamba.errors import OutOfMemory
from repmamba.evaluate.cost import cost_of, measured, multiply_adds, parameters
from repmamba.inference import loading
from repmamba.network.config import PUBLISHED, NetworkConfig
from repmamba.network.repmamba import RepMamba


@pytest.mark.parametrize(
    ("name", "trained", "folded"),
    [("x2", 775_212, 764_412), ("x3", 783_867, 773_067), ("x4", 795_984, 785_184)],
)
def test_parameters_match_the_specification(name, trained, folded):
    assert parameters(PUBLISHED[name]) == trained
    assert parameters(PUBLISHED[name], "folded") == folded


@pytest.mark.parametrize(
    ("name", "folded", "trained"),
    [("x2", 11.014, 11.061), ("x3", 11.156, 11.203), ("x4", 11.354, 11.401)],
)
def test_multiply_adds_match_the_specification(name, folded, trained):
    counted = multiply_adds(PUBLISHED[name], 128, 128)
    assert round(sum(counted.values()) / 1e9, 3) == folded
    assert (
        round(sum(multiply_adds(PUBLISHED[name], 128, 128, "trained").values()) / 1e9, 3) == trained
    )
    assert round(counted["scan"] / 1e9, 3) == 0.779
    assert round(counted["CSSP without scan"] / 1e9, 3) == 3.941
    assert round(counted["ConvFFN"] / 1e9, 3) == 1.925
    assert round(counted["group convolutions"] / 1e9, 3) == 3.624


OPTIONS = (
    {},
    {"upsampler": "pixelshuffle"},
    {"upsampler": "pixelshuffle", "scale": 3},
    {"upsampler": "pixelshuffle", "scale": 2},
    {"upsampler": "nearest+conv"},
    {"upsampler": "none", "scale": 1},
    {"resi_connection": "3conv"},
    {"repconv": False},
    {"cssp": False},
    {"in_chans": 5, "mlp_ratio": 1.5, "depths": (2, 1)},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_count_matches_torchs_counter(monkeypatch, options):
    """Against torch's count of convolutions and matrix products, which lacks the scan."""
    config = NetworkConfig(**({"depths": (1,)} | options))
    network = RepMamba(config).eval()
    monkeypatch.setattr("repmamba.network.rmb.scan_map", lambda p, *others, **options: p)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.rand(1, config.in_chans, 8, 6))
    parts = multiply_adds(config, 8, 6, "trained")
    widths = (8, 16, 32, 64) if config.cssp else (8, 8, 16, 32)
    dt_proj = 48 * sum(config.depths) * sum(c * (2 if c == 64 else 1) for c in widths)
    assert counter.get_total_flops() / 2 == sum(parts.values()) - parts["scan"] - dt_proj


def test_odd_sizes_cost_as_much_as_the_even_ones():
    assert multiply_adds(PUBLISHED["x4"], 127, 1) == multiply_adds(PUBLISHED["x4"], 128, 2)


def test_a_cost_states_its_size_and_both_forms():
    cost = cost_of(PUBLISHED["x4"], 128, 128)
    assert (cost.height, cost.width, cost.parameters, cost.parameters_folded) == (
        128,
        128,
        795_984,
        785_184,
    )
    assert cost.scan_multiply_adds < cost.multiply_adds
    assert cost.seconds is None


class InThisProcess:
    """The interface of a process pool, without processes."""

    def __init__(self, *arguments, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, step, *arguments):
        future = Future()
        future.set_result(step(*arguments))
        return future


class Killed(InThisProcess):
    def submit(self, step, *arguments):
        future = Future()
        future.set_exception(
            BrokenProcessPool("A process in the process pool was terminated abruptly")
        )
        return future


@pytest.fixture
def small(tiny_weights):
    return str(tiny_weights())


def test_memory_is_measured_with_the_chosen_backend_and_precision(small, monkeypatch):
    chosen = {"device": "cpu", "backend": "chunked", "precision": "bfloat16"}
    ours = loading.load(small, **chosen)
    loads = []
    plain = loading.load
    monkeypatch.setattr(
        loading, "load", lambda name, **options: loads.append(options) or plain(name, **options)
    )
    monkeypatch.setattr("repmamba.evaluate.cost.ProcessPoolExecutor", InThisProcess)
    cost = measured(
        cost_of(NetworkConfig(scale=2, depths=(1,)), 8, 8), ours, small, backend="chunked"
    )
    assert loads == [chosen]
    assert re.fullmatch(r"cpu \(.+, threads: \d+\), bfloat16", cost.device)
    assert cost.peak_memory > 0


def test_seconds_are_multiplied_by_the_number_of_passes(small, monkeypatch):
    monkeypatch.setattr("repmamba.evaluate.cost.measure", lambda *arguments: (0.5, 0.25))
    monkeypatch.setattr("repmamba.evaluate.cost.ProcessPoolExecutor", InThisProcess)
    ours = loading.load(small, device="cpu")
    cost = measured(
        cost_of(NetworkConfig(scale=2, depths=(1,)), 8, 8, passes=8), ours, small, passes=8
    )
    assert (cost.seconds, cost.seconds_least) == (4, 2)


def test_a_killed_measuring_process_is_one_clear_error(small, monkeypatch):
    monkeypatch.setattr("repmamba.evaluate.cost.ProcessPoolExecutor", Killed)
    cost = cost_of(NetworkConfig(scale=2, depths=(1,)), 8, 8)
    with pytest.raises(
        OutOfMemory, match=r"cost of an LR image of 8x8 pixels cannot be measured: .* smaller cost"
    ):
        measured(cost, loading.load(small, device="cpu"), small)


@pytest.mark.parametrize(
    ("text", "kind"), [("not enough memory: you tried to", OutOfMemory), ("a bug", RuntimeError)]
)
def test_lack_of_memory_while_timing_is_distinguished_from_other_failures(
    small, monkeypatch, text, kind
):
    def fails(*arguments):
        raise RuntimeError(text)

    monkeypatch.setattr("repmamba.evaluate.cost.measure", fails)
    with pytest.raises(kind) as caught:
        measured(
            cost_of(NetworkConfig(scale=2, depths=(1,)), 8, 8),
            loading.load(small, device="cpu"),
            small,
        )
    assert type(caught.value) is kind
