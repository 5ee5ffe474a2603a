"""Every intermediate result of the published modules, found in ours by forward hooks and by
watching what RMBs call.
"""

import pytest
import torch
import torch.nn.functional

import repmamba.network.rmb as rmb_module
from repmamba.network.repconv import to_map
from repmamba.scan.directions import to_sequences
from repmamba.scan.selective import scan_map, selective_scan

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


class Watched:
    """A namespace of functions that notes what each is called with and returns, in the order of the
    calls.
    """

    def __init__(self, functions):
        self.functions = functions
        self.calls = []

    def __getattr__(self, name):
        def noted(*args, **options):
            result = getattr(self.functions, name)(*args, **options)
            self.calls.append((name, args, result))
            return result

        return noted


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def stages(request, numbers, network_of):
    """Our stages under the golden names, with their type."""
    network = network_of("net_x4", dtype=request.param)
    found = {}

    def note(module, given=None, result=None, tokens=False):
        def hook(_, args, output):
            for name, value in ((given, args[0]), (result, output)):
                if name:
                    found[name] = to_map(value) if tokens else value

        module.register_forward_hook(hook)

    group, block = network.groups[0], network.groups[0].blocks[0]
    note(network.conv_first, "net.centred", "net.conv_first")
    note(network.embed_norm, None, "net.embed_norm", tokens=True)
    note(network.norm, "net.body", "net.final_norm", tokens=True)
    note(network.conv_after_body, None, "net.conv_after_body")
    note(network.upsampler, "net.fused", "net.shuffled")
    note(network.upsampler.conv, None, "net.upsample_conv")
    note(network, "net.input", "net.output")
    note(group, None, "group.out")
    note(group.conv, "block.out", "group.conv")
    note(block, "block.in")
    note(block.cssp, None, "block.cssp")
    note(block.norm, "block.residual1", "block.norm2", tokens=True)
    note(block.ffn.fc1, None, "block.fc1", tokens=True)
    note(block.ffn.dw5x5, "block.gelu")
    note(block.ffn.fc2, "block.ffn_sum", "block.fc2", tokens=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("m8", "m16", "m32", "m64"):
            _note_rmb(name, getattr(block.cssp, name), note, found, patch)
        with torch.no_grad():
            network(numbers("stages_x4")["net.input"].to(request.param))
    for number, share in enumerate(found["block.in"].split((8, 8, 16, 32), dim=1)):
        found[f"block.split{number}"] = share
    found["block.dwconv_gelu"] = found["block.ffn_sum"] - found["block.gelu"]
    return found, request.param


def _note_rmb(name, rmb, note, found, patch):
    note(rmb, f"{name}.in", f"{name}.out")
    note(rmb.norm, None, f"{name}.norm", tokens=True)
    note(rmb.dw1x1, f"{name}.residual")
    note(rmb.ss2d.in_proj, None, f"{name}.in_proj", tokens=True)
    note(rmb.ss2d.conv, None, f"{name}.conv")
    note(rmb.ss2d.high_conv, None, f"{name}.high_conv")
    note(rmb.ss2d.out_norm, f"{name}.joined", f"{name}.out_norm", tokens=True)
    note(rmb.ss2d.out_proj, f"{name}.gated", f"{name}.out_proj", tokens=True)
    plain = rmb.ss2d.forward

    def watched(tokens):
        functions, scan = Watched(torch.nn.functional), Watched(rmb_module)
        with patch.context() as inner:
            inner.setattr(rmb_module, "F", functions)
            inner.setattr(
                rmb_module,
                "scan_map",
                lambda *args, **backend: _noted_scan(scan.calls, *args, **backend),
            )
            result = plain(tokens)
        _sort_calls(name, functions.calls, scan.calls, found)
        return result

    patch.setattr(rmb.ss2d, "forward", watched)


def _noted_scan(calls, *args, **backend):
    result = scan_map(*args, **backend)
    calls.append((args, result))
    return result


def _sort_calls(name, calls, scans, found):
    found[f"{name}.act"] = next(result for function, _, result in calls if function == "silu")
    (low, *_), found[f"{name}.pooled"] = next(
        (args, result) for function, args, result in calls if "pool" in function
    )
    nearest, bilinear = (result for function, _, result in calls if function == "interpolate")
    found[f"{name}.low"] = low
    found[f"{name}.residue"] = low - nearest
    found[f"{name}.upsampled"] = bilinear
    found[f"{name}.low_out"] = found[f"{name}.joined"][:, : low.shape[1]]
    ((pooled, projected, dt_weight, dt_bias, A, D), merged) = scans[0]
    found[f"{name}.merged"] = merged
    _lay_out_scan(name, pooled, projected, dt_weight, dt_bias, A, D, found)


def _lay_out_scan(name, pooled, projected, dt_weight, dt_bias, A, D, found):
    """The sequences behind `scan_map`, made from what it was given."""
    batch, channels, height, width = pooled.shape
    rank = dt_weight.shape[2]
    rows = to_sequences(projected.reshape(batch, 4, rank + 32, height, width))
    u = to_sequences(pooled.unsqueeze(1).expand(batch, 4, channels, height, width))
    delta = torch.einsum("kcr,bkrl->bkcl", dt_weight, rows[:, :, :rank])
    B, C = rows[:, :, rank : rank + 16], rows[:, :, rank + 16 :]
    y = selective_scan(
        u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, dt_bias=dt_bias.flatten()
    ).view_as(u)
    by_row, by_column = y[:, 0::2], y[:, 1::2]
    forwards = torch.stack([by_row[:, 0], by_row[:, 1].flip(-1)], 1).unflatten(-1, (height, width))
    downwards = torch.stack([by_column[:, 0], by_column[:, 1].flip(-1)], 1).unflatten(
        -1, (width, height)
    )
    order = torch.stack(
        [forwards[:, 0], downwards[:, 0].mT, forwards[:, 1], downwards[:, 1].mT], dim=1
    )
    for stage, value in (
        ("u", u),
        ("delta", delta),
        ("B", B),
        ("C", C),
        ("y", y),
        ("image_order", order),
    ):
        found[f"{name}.scan.{stage}"] = value


def test_every_stage_is_that_of_the_published_network(stages, numbers):
    found, dtype = stages
    golden = numbers("stages_x4")
    assert set(golden) <= set(found)
    for name, expected in golden.items():
        assert found[name].shape == expected.shape, name
        assert (found[name] - expected).abs().max() < TOLERANCE[dtype], name
