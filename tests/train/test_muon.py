"""Muon against singular value decomposition, against torch's own, and in a run."""

import torch

from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba
from repmamba.train.curves import read_curve
from repmamba.train.loop import fit
from repmamba.train.muon import Muon, is_body_matrix, orthogonalised


def test_a_gradient_becomes_nearly_its_orthogonal_factor():
    drawn = torch.randn(5, 24, 60, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    for matrices, factor in ((drawn, left @ right), (drawn.mT, (left @ right).mT)):
        found = orthogonalised(matrices)
        values = torch.linalg.svdvals(found)
        assert 0.6 < values.min() < values.max() < 1.3
        cosine = torch.nn.functional.cosine_similarity(found.flatten(1), factor.flatten(1))
        assert cosine.min() > 0.97
    assert orthogonalised(torch.zeros(1, 3, 4)).abs().max() == 0


def test_three_steps_on_a_matrix_match_torchs_muon():
    draw = torch.Generator().manual_seed(2)
    ours = torch.nn.Parameter(torch.randn(32, 48, generator=draw))
    theirs = torch.nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimiser = Muon([{"params": [ours], "matrices": True}], lr=1e-2, weight_decay=0.1)
    reference = torch.optim.Muon(
        [theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(3):
        ours.grad = torch.randn(32, 48, generator=draw)
        theirs.grad = ours.grad.clone()
        optimiser.step()
        reference.step()
    moved = (ours - start).norm()
    # torch orthogonalises in bfloat16
    assert (ours - theirs).norm() < 0.02 * moved


def test_kernels_and_stacks_are_stepped_as_their_matrices_are():
    draw = torch.Generator().manual_seed(3)
    kernel, stack = torch.randn(8, 4, 3, 3, generator=draw), torch.randn(2, 8, 36, generator=draw)
    together = [torch.nn.Parameter(one.clone()) for one in (kernel, stack)]
    alone = [torch.nn.Parameter(one.clone()) for one in (kernel.reshape(8, 36), *stack)]
    for parameters in (together, alone):
        for one in parameters:
            one.grad = one.detach() ** 2
        Muon([{"params": parameters, "matrices": True}], lr=1e-2).step()
    torch.testing.assert_close(together[0].reshape(8, 36), alone[0])
    torch.testing.assert_close(together[1], torch.stack([*alone[1:]]))


def test_the_rest_is_stepped_by_adamw():
    plain, mixed = (torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2))
    matrix = torch.nn.Parameter(torch.eye(3))
    for one in (plain, mixed, matrix):
        one.grad = one.detach() + 1
    torch.optim.AdamW([plain], lr=1e-2).step()
    Muon([{"params": [mixed]}, {"params": [matrix], "matrices": True}], lr=1e-2).step()
    assert torch.equal(plain, mixed)
    assert not torch.equal(matrix, torch.eye(3))


def test_the_bodys_projections_and_full_convolutions_are_its_matrices():
    network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
    chosen = {name for name, one in network.named_parameters() if is_body_matrix(name, one)}
    ends = {name.removesuffix(".weight").rsplit(".", 1)[-1] for name in chosen}
    assert ends == {"in_proj", "out_proj", "x_proj", "fc1", "fc2", "conv", "conv_after_body"}
    assert "upsampler.conv.weight" not in chosen


def test_a_run_by_muon_that_was_stopped_goes_on_unchanged(tiny, tmp_path, seen):
    recipe = tiny(optimiser={"kind": "muon", "lr": 1e-3})
    fit(recipe, tmp_path / "whole", log_every=1)
    while not fit(recipe, tmp_path / "stopped", log_every=1, minutes=0).finished:
        pass
    assert seen(tmp_path / "stopped") == seen(tmp_path / "whole")
    fit(tiny(), tmp_path / "adamw", log_every=1)
    losses = [
        [line["loss"] for line in read_curve(tmp_path / run / "curve.jsonl") if "loss" in line]
        for run in ("whole", "adamw")
    ]
    assert losses[0] != losses[1]
