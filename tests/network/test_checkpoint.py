import contextlib
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from repmamba.errors import CheckpointError, NoSpace, TargetError, UsageError
from repmamba.network import weight_files
from repmamba.network.checkpoint import (
    Checkpoint,
    from_pretrained,
    read_checkpoint,
    save_pretrained,
    write_checkpoint,
)
from repmamba.network.config import NetworkConfig
from repmamba.network.published import to_published
from repmamba.network.repmamba import RepMamba

SMALL = NetworkConfig(depths=(1,), scale=2)
CORRUPT = "truncated or corrupt"


@pytest.fixture(scope="module")
def network(shaken):
    return shaken(SMALL)


@pytest.fixture(scope="module")
def published(network):
    """The network's state as the published code would save it."""
    return {
        name: tensor.clone() for name, tensor in to_published(SMALL, network.state_dict()).items()
    }


@pytest.fixture
def ours(network, tmp_path):
    return write_checkpoint(tmp_path / "ours.safetensors", Checkpoint.of(network, origin="a test"))


def same_weights(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def refusal(path, **options):
    """The one-line error for a checkpoint."""
    with pytest.raises(CheckpointError) as refused:
        read_checkpoint(path, **options)
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


# Written and read again.


@pytest.mark.parametrize("name", ["one.safetensors", "folder"])
def test_a_written_checkpoint_is_read_again(network, tmp_path, name):
    given = Checkpoint.of(
        network, origin="from scratch", training={"steps": 3956, "data": ["RSSCN7"], "psnr": 27.5}
    )
    write_checkpoint(tmp_path / name, given)
    read = read_checkpoint(tmp_path / name)
    assert same_weights(given.weights, read.weights)
    assert (read.config, read.origin, read.training) == (given.config, given.origin, given.training)
    assert read.value_range == (0.0, 1.0)
    image = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(read.network()(image), network(image))
    assert list(tmp_path.rglob(".*")) == []


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(depths=(1,), repconv=False, cssp=False),
        NetworkConfig(
            depths=(1, 2), in_chans=13, img_range=255.0, patch_norm=False, resi_connection="3conv"
        ),
        NetworkConfig(depths=(1,), upsampler="nearest+conv", mlp_ratio=1.5),
    ],
    ids=str,
)
def test_every_configuration_is_carried_in_the_file(shaken, tmp_path, config):
    path = write_checkpoint(tmp_path / "a.safetensors", Checkpoint.of(shaken(config)))
    assert read_checkpoint(path).config == config


def test_float16_storage_is_smaller_close_and_read_as_float32(network, tmp_path):
    exact = write_checkpoint(tmp_path / "32.safetensors", Checkpoint.of(network))
    half = write_checkpoint(tmp_path / "16.safetensors", Checkpoint.of(network), storage="float16")
    assert half.stat().st_size < 0.65 * exact.stat().st_size
    read = read_checkpoint(half)
    assert {tensor.dtype for tensor in read.weights.values()} == {torch.float32, torch.int64}
    for name, tensor in network.state_dict().items():
        assert torch.allclose(read.weights[name], tensor, rtol=1e-3, atol=1e-6), name
        if tensor.dim() == 1 or name.endswith(("A_log", "dt_weight", "dt_bias", "x_proj")):
            assert torch.equal(read.weights[name], tensor), name


def test_equal_checkpoints_have_equal_bytes(network, tmp_path):
    training = {"b": 1, "a": 2}
    digests = set()
    for number, facts in enumerate((training, dict(reversed(training.items())))):
        path = write_checkpoint(
            tmp_path / f"{number}.safetensors", Checkpoint.of(network, training=facts)
        )
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_any_safetensors_reader_opens_ours(network, ours):
    assert same_weights(load_file(ours), network.state_dict())


def test_reading_does_not_change_the_random_state(ours):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    read_checkpoint(ours).network()
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_is_a_copy_of_the_network(shaken):
    network = shaken(SMALL)
    checkpoint = Checkpoint.of(network)
    before = checkpoint.weights["norm.weight"].clone()
    with torch.no_grad():
        network.norm.weight.add_(1)
    assert torch.equal(checkpoint.weights["norm.weight"], before)


def test_a_failed_write_keeps_the_old_file(network, ours, monkeypatch):
    before = ours.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="No space left for"):
        write_checkpoint(ours, Checkpoint.of(network, origin="another"))
    assert ours.read_bytes() == before
    assert [path.name for path in ours.parent.iterdir()] == [ours.name]


def test_a_target_that_cannot_be_written_is_one_line(network, tmp_path):
    (tmp_path / "file").write_text("")
    for target in ("file", "file/a.safetensors", "missing/a.safetensors"):
        with pytest.raises(TargetError) as refused:
            write_checkpoint(tmp_path / target, Checkpoint.of(network))
        assert "\n" not in str(refused.value)


def test_unusable_weights_are_not_written(network, tmp_path):
    target = tmp_path / "a.safetensors"
    for name, value, words in (
        ("norm.weight", float("nan"), "NaN"),
        ("conv_first.weight", 1e6, "infinite"),
    ):
        checkpoint = Checkpoint.of(network)
        checkpoint.weights[name].flatten()[0] = value
        with pytest.raises(CheckpointError, match=words):
            write_checkpoint(target, checkpoint, storage="float16")
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        write_checkpoint(target, Checkpoint.of(network, training={"loss": float("nan")}))
    with pytest.raises(UsageError, match="storage is 'int8'"):
        write_checkpoint(target, Checkpoint.of(network), storage="int8")
    weights = dict(Checkpoint.of(network).weights)
    del weights["norm.weight"]
    with pytest.raises(CheckpointError, match="1 missing"):
        write_checkpoint(target, Checkpoint(SMALL, weights))
    assert not target.exists()


# The published forms.


def as_plain(state):
    return state


def as_training_state(state):
    parameter = torch.nn.Parameter(state["norm.weight"].clone())
    optimiser = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimiser.step()
    return {"epoch": 7, "state_dict": state, "optimizer": optimiser.state_dict()}


def as_data_parallel(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def as_data_parallel_training_state(state):
    return as_training_state(state) | {"state_dict": as_data_parallel(state)}


def as_parameters(state):
    return {
        name: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        for name, tensor in state.items()
    }


def without_counts(state):
    return {
        name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    }


FORMS = (
    as_plain,
    as_training_state,
    as_data_parallel,
    as_data_parallel_training_state,
    as_parameters,
    without_counts,
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_published_form_of_pth_is_read(network, published, tmp_path, form):
    torch.save(form(published), tmp_path / "model.pth")
    read = read_checkpoint(tmp_path / "model.pth")
    assert read.config == SMALL
    assert same_weights(read.weights, network.state_dict())
    assert "published" in read.origin
    if form is as_training_state:
        assert "training state of epoch 7" in read.origin


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_safetensors_file_is_read(network, published, tmp_path, prefix):
    save_file(
        {prefix + name: tensor for name, tensor in published.items()},
        tmp_path / "m.safetensors",
        {"format": "pt"},
    )
    assert same_weights(read_checkpoint(tmp_path / "m.safetensors").weights, network.state_dict())


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_published_folder_is_read_with_the_range_of_its_config(
    network, published, tmp_path, weights
):
    (tmp_path / "config.json").write_text(
        json.dumps({"upscale": 2, "img_range": 255.0, "embed_dim": 64})
    )
    if weights.endswith("bin"):
        torch.save(published, tmp_path / weights)
    else:
        save_file(published, tmp_path / weights)
    read = read_checkpoint(tmp_path)
    assert read.config == NetworkConfig(depths=(1,), scale=2, img_range=255.0)
    assert same_weights(read.weights, network.state_dict())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_golden_checkpoints_open(golden, scale):
    read = read_checkpoint(golden / f"net_x{scale}.safetensors")
    assert read.config == NetworkConfig(scale=scale)
    assert len(read.network().state_dict()) == 1102


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_types_become_float32(published, tmp_path, dtype):
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in published.items()
    }
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert read_checkpoint(tmp_path / name).weights["norm.weight"].dtype == torch.float32


# Other kinds of checkpoint.


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (NetworkConfig(depths=(1,)), "This is an x2 checkpoint, but x4 is expected"),
        (
            NetworkConfig(depths=(1,), scale=2, resi_connection="3conv"),
            "It has the 1conv connection",
        ),
        (
            NetworkConfig(depths=(1,), scale=2, upsampler="pixelshuffle"),
            "upsampler pixelshuffledirect",
        ),
        (NetworkConfig(depths=(1,), scale=2, in_chans=4), "takes 3 bands, but 4 are expected"),
    ],
    ids=str,
)
def test_the_error_names_the_kind_of_checkpoint(ours, expected, words):
    text = refusal(ours, expected=expected)
    assert words in text
    assert "missing" in text or "of another shape" in text


def test_weights_of_another_network_are_reported_as_such(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)).state_dict(), tmp_path / "a.pth")
    assert "weights of another network: found 0.weight, 0.bias" in refusal(tmp_path / "a.pth")


def test_missing_unexpected_and_misshapen_names_are_listed(published, tmp_path):
    state = dict(published)
    del state["norm.bias"]
    state["norm.weight"] = torch.ones(65)
    state["extra"] = torch.ones(1)
    torch.save(state, tmp_path / "a.pth")
    text = refusal(tmp_path / "a.pth")
    assert (
        "1 missing (norm.bias); 1 unexpected (extra); 1 of another shape (norm.weight of shape "
        "(65,)" in text
    )


def test_a_position_embedding_is_refused(published, tmp_path):
    torch.save(published | {"absolute_pos_embed": torch.zeros(1, 4096, 64)}, tmp_path / "a.pth")
    assert "absolute_pos_embed" in refusal(tmp_path / "a.pth")


def test_a_config_of_another_scale_is_refused(published, tmp_path):
    save_file(published, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"upscale": 4}')
    assert "is an x2 checkpoint" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"img_range": "255"}')
    assert "img_range '255'" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"img_range": ')
    assert "config.json is corrupt" in refusal(tmp_path)


# Damaged and malicious files.


def header_and_data(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_safetensors(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_files_that_are_not_checkpoints_are_refused_in_one_line(tmp_path, ours, published):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("hello, this is no checkpoint")
    (tmp_path / "image.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "cut.safetensors").write_bytes(ours.read_bytes()[:-1])
    (tmp_path / "head.safetensors").write_bytes(ours.read_bytes()[:1000])
    (tmp_path / "more.safetensors").write_bytes(ours.read_bytes() + b"\0")
    (tmp_path / "folder").mkdir()
    torch.save(published, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(published, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-30_000])
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "number.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name, words in {
        "missing.pth": "does not exist",
        "empty.pth": "is empty",
        "text.pth": "neither a safetensors file nor one saved by PyTorch",
        "image.safetensors": "neither a safetensors file",
        "cut.safetensors": CORRUPT,
        "head.safetensors": "is truncated: it ends inside its header",
        "more.safetensors": CORRUPT,
        "folder": "has no weights: neither model.safetensors nor pytorch_model.bin",
        "old.pth": "before 1.6",
        "cut.pth": CORRUPT,
        "list.pth": "no state dict",
        "number.pth": "'a' is a int, not a tensor",
        "other.pth": "that PyTorch did not save",
    }.items():
        assert words in refusal(tmp_path / name), name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_a_future_format_is_refused_by_its_number(tmp_path, ours):
    header, data = header_and_data(ours)
    facts = json.loads(header["__metadata__"]["repmamba"])
    for change, words in (
        (
            {"format_version": 2},
            "format version 2, but this repmamba reads up to 1; install a newer repmamba",
        ),
        ({"format_version": "one"}, "format version is 'one'"),
        ({"config": {"scale": 9}}, "scale is 9"),
        ({"config": {"depths": [1000]}}, "1000 blocks"),
        ({"config": [1]}, "has no valid config"),
        ({"value_range": None}, "has no valid config"),
    ):
        header["__metadata__"]["repmamba"] = json.dumps(facts | change)
        write_safetensors(tmp_path / "a.safetensors", header, data)
        assert words in refusal(tmp_path / "a.safetensors")
    header["__metadata__"]["repmamba"] = "{"
    write_safetensors(tmp_path / "a.safetensors", header, data)
    assert "invalid JSON" in refusal(tmp_path / "a.safetensors")


def test_hostile_headers_are_refused(tmp_path, ours):
    header, data = header_and_data(ours)
    first = next(name for name in header if name != "__metadata__")
    path = tmp_path / "a.safetensors"

    def refused(**entry):
        write_safetensors(path, header | {first: header[first] | entry}, data)
        return refusal(path)

    assert CORRUPT in refused(shape=[1 << 60])
    assert CORRUPT in refused(shape=[-1])
    assert CORRUPT in refused(shape=[True])
    assert CORRUPT in refused(shape=[7])
    assert CORRUPT in refused(data_offsets=[0, 5])
    assert CORRUPT in refused(dtype="F8_E4M3")
    unsigned = {"F32": "U32", "I64": "U64"}[header[first]["dtype"]]
    assert f"of type {unsigned}; expected F16, BF16, F32" in refused(dtype=unsigned)
    assert CORRUPT in refused(data_offsets=[0])
    assert CORRUPT in refused(shape=None)
    begin, end = header[first]["data_offsets"]
    assert CORRUPT in refused(data_offsets=[begin + 4, end + 4])
    write_safetensors(path, header | {first: 3}, data)
    assert CORRUPT in refusal(path)

    twice = json.dumps(header)[:-1] + f', "{first}": {json.dumps(header[first])}}}'
    write_safetensors(path, twice.encode(), data)
    assert f"has the name '{first}' twice" in refusal(path)

    empty = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = ",".join(f'"n{number}":{empty}' for number in range(300_000))
    write_safetensors(path, f"{{{names}}}".encode(), b"")
    assert "declares a header of" in refusal(path)
    names = {f"{number:x}": 0 for number in range(110_000)}
    write_safetensors(path, names, b"")
    assert "has 110000 names" in refusal(path)

    for text in (
        b"{" + b'"a":[' * 100_000,
        b'{"a":' + b"9" * 10_000 + b"}",
        b"{\xff",
        b'{"a": NaN}',
    ):
        write_safetensors(path, text, b"")
        assert "corrupt" in refusal(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert "at most" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(published, tmp_path, value):
    state = dict(published)
    state["norm.weight"] = torch.full((64,), value)
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert "NaN or infinite values in norm.weight" in refusal(tmp_path / name)


def test_a_negative_variance_is_refused(published, tmp_path):
    name = next(name for name in published if name.endswith("running_var"))
    torch.save(published | {name: -torch.ones_like(published[name])}, tmp_path / "a.pth")
    assert "negative variance" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "tensor", [torch.ones(64, dtype=torch.int32), torch.ones(64, dtype=torch.complex64)], ids=str
)
def test_weights_of_another_kind_of_number_are_refused(published, tmp_path, tensor):
    torch.save(published | {"norm.weight": tensor}, tmp_path / "a.pth")
    assert "expected floating point for weights" in refusal(tmp_path / "a.pth")


def test_sparse_weights_are_refused(published, tmp_path):
    torch.save(published | {"norm.weight": torch.ones(64).to_sparse()}, tmp_path / "a.pth")
    assert "a.pth" in refusal(tmp_path / "a.pth")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (exec, (f"open({str(self.proof)!r}, 'w').close()",))


def test_code_in_a_pickle_is_never_run(published, tmp_path):
    proof = tmp_path / "it-ran"
    bombs = {"state_dict": published, "bomb": Bomb(proof)}
    torch.save(bombs, tmp_path / "zip.pth")
    torch.save(bombs, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(proof)))
    (tmp_path / "protocol0.pth").write_bytes(pickle.dumps(Bomb(proof), protocol=0))
    assert "would run code" in refusal(tmp_path / "zip.pth")
    for name in ("legacy.pth", "plain.pth", "protocol0.pth"):
        refusal(tmp_path / name)
    assert not proof.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())  # without the check it does run
    assert proof.exists()


def rewritten(source, target, *, change=lambda name, data: data, **options):
    """A copy of a PyTorch zip file with changed or compressed members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member.filename)))


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path):
    torch.save({"conv_first.weight": torch.zeros(1 << 22)}, tmp_path / "plain.pth")
    rewritten(tmp_path / "plain.pth", tmp_path / "bomb.pth", compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    assert "has compressed parts" in refusal(tmp_path / "bomb.pth")


def test_a_tensor_larger_than_its_file_allocates_no_memory(tmp_path):
    """A file of 1.5 KB that declares 2^10 x 2^20 numbers."""
    torch.save({"conv_first.weight": torch.zeros(64)}, tmp_path / "small.pth")

    def declare_more(name, data):
        if not name.endswith("data.pkl"):
            return data
        shape = data.index(b"K@\x85")  # (64,): BININT1 64, TUPLE1
        stride = data.index(b"K\x01\x85", shape + 1)
        thousand, million = (b"J" + struct.pack("<i", 1 << power) for power in (10, 20))
        return (
            data[:shape]
            + thousand
            + million
            + b"\x86"
            + data[shape + 3 : stride]
            + million
            + b"K\x01\x86"
            + data[stride + 3 :]
        )

    rewritten(tmp_path / "small.pth", tmp_path / "large.pth", change=declare_more)
    assert (tmp_path / "large.pth").stat().st_size < 3000
    assert "is corrupt: its weights cannot be read" in refusal(tmp_path / "large.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_no_tensor_is_read_before_names_and_shapes_are_known(tmp_path, name):
    """Shown by changing the file in between: `load` returns the new content."""
    path = tmp_path / name
    tensors = {"a": torch.full((1 << 16,), 1.5)}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    opened = weight_files.open_weights(path)
    assert dict(opened.shapes) == {"a": (1 << 16,)}
    place = path.read_bytes().index(struct.pack("<4f", *[1.5] * 4))
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(struct.pack("<f", 2.5) * (1 << 16))
    assert (opened.load()["a"] == 2.5).all()


def test_an_expanded_tensor_is_checked_by_its_shape(published, tmp_path):
    torch.save(published | {"norm.weight": torch.zeros(1).expand(1 << 40)}, tmp_path / "a.pth")
    assert "norm.weight of shape (1099511627776,) instead of (64,)" in refusal(tmp_path / "a.pth")


def test_an_oversized_index_is_refused(tmp_path):
    torch.save({f"n{number}" + "x" * 40: number for number in range(300_000)}, tmp_path / "a.pth")
    assert "has an index of more than" in refusal(tmp_path / "a.pth")


def test_duplicate_parts_are_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(tmp_path / "a.pth", "a") as archive,
    ):
        archive.writestr(name, b"\x80\x02}.")
    assert "has duplicate parts" in refusal(tmp_path / "a.pth")


def test_flipped_bytes_of_a_pth_give_one_line_or_a_checkpoint(published, tmp_path):
    """Whatever a damaged file does, it ends in a CheckpointError or in weights of the right
    shapes.
    """
    buffer = io.BytesIO()
    torch.save({"state_dict": published}, buffer)
    whole = buffer.getvalue()
    index = whole.index(b"data.pkl")
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        damaged = bytearray(whole)
        place = index + int(torch.randint(0, 30_000, (1,), generator=generator))
        damaged[place] ^= 1 << int(torch.randint(0, 8, (1,), generator=generator))
        (tmp_path / "a.pth").write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            assert read_checkpoint(tmp_path / "a.pth").network().config.depths == (1,)


# By name.


def test_a_saved_folder_opens_offline(network, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = save_pretrained(network, tmp_path / "weights", origin="here", training={"steps": 1})
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((folder / "config.json").read_text())["scale"] == 2
    opened = from_pretrained(folder)
    assert same_weights(opened.state_dict(), network.state_dict())
    assert not opened.training


def test_a_hub_name_is_fetched_and_opened(network, tmp_path, monkeypatch):
    folder = save_pretrained(network, tmp_path / "snapshot")
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    opened = from_pretrained("someone/repmamba-x2", revision="v1", local_files_only=True)
    assert same_weights(opened.state_dict(), network.state_dict())
    ((name, options),) = asked
    assert name == "someone/repmamba-x2"
    assert options["revision"] == "v1"
    assert options["local_files_only"]
    assert options["allow_patterns"] == ["config.json", "model.safetensors"]


def test_a_hub_name_that_is_not_in_the_cache_is_one_line_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match="someone/nothing could not be downloaded from the hub"
    ) as refused:
        from_pretrained("someone/nothing", local_files_only=True)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["x9", "a/b/c", "./nothing/here", "folder/missing.pth", "someone/not a name"]
)
def test_neither_a_file_nor_a_hub_name_is_one_line(name):
    with pytest.raises(CheckpointError) as refused:
        from_pretrained(name, local_files_only=True)
    assert "\n" not in str(refused.value)


def test_a_hub_repository_without_weights_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        from_pretrained("someone/empty")


def test_any_error_of_the_hub_is_one_line(monkeypatch):
    def snapshot_download(name, **options):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(
        CheckpointError, match=r"downloaded from the hub \(RuntimeError: no route\)"
    ) as refused:
        from_pretrained("someone/repmamba-x2")
    assert "\n" not in str(refused.value)


def test_a_revision_of_a_folder_is_refused(network, tmp_path):
    folder = save_pretrained(network, tmp_path / "weights")
    with pytest.raises(UsageError, match="is a local file and has no revision 'v1'"):
        from_pretrained(folder, revision="v1")


def test_the_only_weights_of_a_folder_may_have_any_name(published, network, tmp_path):
    torch.save(published, tmp_path / "model_best_x2.pth")
    assert same_weights(from_pretrained(tmp_path).state_dict(), network.state_dict())
    torch.save(published, tmp_path / "model_last_x2.pth")
    assert "2 files of weights: model_best_x2.pth, model_last_x2.pth. Name one" in refusal(tmp_path)


def test_the_limits_on_files_allow_the_largest_network(shaken, tmp_path):
    config = NetworkConfig(depths=(1,) * 24, upsampler="pixelshuffle")
    path = write_checkpoint(tmp_path / "a.safetensors", Checkpoint.of(shaken(config)))
    assert read_checkpoint(path).config == config
    assert path.stat().st_size < weight_files.LARGEST_FILE / 10


def test_a_model_card_is_saved_with_weights_and_kept_once_edited(tmp_path):
    network = RepMamba(NetworkConfig(scale=3, depths=(1,)))
    told = {"terms": "CC BY 4.0", "images": 12, "note": "a | b ``` c"}
    folder = save_pretrained(network, tmp_path / "ours", origin="of <two>\nscenes", training=told)
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: repmamba\npipeline_tag: image-to-image\n")
    for line in (
        "# ours",
        "| scale | x3 |",
        "| origin | of &lt;two> scenes |",
        "| terms of the weights | CC BY 4.0 |",
        '  "images": 12,',
    ):
        assert line in card.splitlines()
    assert card.count("```") == 4
    save_pretrained(network, folder)
    assert "| terms of the weights | unknown" in (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text("my own")
    save_pretrained(network, folder)
    assert (folder / "README.md").read_text() == "my own"
    assert read_checkpoint(folder).config == network.config


FORKED = """
import multiprocessing, sys, numpy as np, torch, repmamba
torch.set_num_threads(2)
image = np.zeros((16, 16, 3), np.uint8)
repmamba.load("x2").upscale(image)
torch.rand(1 << 20).isfinite().all()  # by both threads

def work():
    repmamba.load("x2").upscale(image)

child = multiprocessing.get_context("fork").Process(target=work)
child.start()
child.join(120)
if child.is_alive():
    child.kill()
    sys.exit("the child hangs")
sys.exit(child.exitcode)
"""


def test_a_forked_process_loads_weights_after_its_parent_did():
    ended = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr
