"""TorchRunner: the network as loaded, in the requested precision."""

import torch

from repmamba import load


def test_the_network_computes_in_the_precision_that_was_asked_for(small_weights):
    unit = torch.rand(1, 3, 12, 14)
    exact, reduced = (
        load(small_weights, device="cpu", precision=name, backend="chunked")
        for name in ("float32", "bfloat16")
    )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = reduced.module(unit).float()
    assert torch.equal(reduced.run(unit), expected)
    assert not torch.equal(exact.run(unit), expected)
