"""Timings of a network from Python; benchmarks test the speed."""

import pytest
import torch

from repmamba.evaluate.timing import process_memory, processor, seconds_of, time_network
from repmamba.inference.loading import load


@pytest.fixture(scope="module")
def upscaler(tiny_weights):
    return load(tiny_weights(), device="cpu")


def test_the_first_pass_which_compiles_is_not_counted():
    class Counting:
        bands = 3
        passes = 0

        def run(self, unit):
            self.passes += 1

    counting = Counting()
    assert len(seconds_of(counting, torch.zeros(1, 3, 8, 8), 4)) == 4
    assert counting.passes == 5


def test_one_call_times_a_network(upscaler):
    timing = time_network(upscaler, size=8, batch=2, passes=3, backend="chunked")
    assert (timing.weights, timing.scale, timing.backend) == ("small", 2, "chunked")
    assert timing.output_megapixels == pytest.approx(2 * 16 * 16 / 1e6)
    assert 0 < timing.fastest <= timing.median


def test_process_memory_and_processor_name_are_known():
    memory = process_memory()
    assert memory is None or memory > 10e6
    assert processor(torch.device("cpu"))
