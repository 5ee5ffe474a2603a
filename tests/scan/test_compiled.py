"""Compiled code that cannot start: no place for Numba's cache, a damaged one, no compiler."""

import os
import subprocess
import sys
import warnings

import numba
import pytest
from numba import types

from repmamba.errors import BackendFallback
from repmamba.network import inference_numba
from repmamba.scan import compiled, numba_kernels
from repmamba.scan.backends import VARIABLE

# What numba says where it finds no folder for its cache: a package that cannot be written to, and no home.
WITHOUT_A_PLACE = """
from numba.core.dispatcher import Dispatcher

def enable_caching(self):
    raise RuntimeError(f"cannot cache function {self.py_func.__name__!r}: no locator available")

Dispatcher.enable_caching = enable_caching
"""
INFERENCE_AND_TRAINING = """
import warnings
import torch
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import fuse
from repmamba.network.repmamba import RepMamba
from repmamba.network.rmb import RMB

network, rmb = RepMamba(NetworkConfig(depths=(1,))).eval(), RMB(8).train()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        with torch.no_grad():
            assert fuse(network)(torch.rand(1, 3, 4, 4)).isfinite().all()
        rmb(torch.rand(2, 8, 4, 4)).sum().backward()
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


@pytest.mark.parametrize(
    ("before", "environment", "expected"),
    [
        (WITHOUT_A_PLACE, {}, {"scan 'numba'": "NUMBA_CACHE_DIR"}),
        ("", {"NUMBA_DISABLE_JIT": "1"}, {"scan 'numba'": "NUMBA_DISABLE_JIT"}),
    ],
    ids=["no place for the cache", "no compiler"],
)
def test_networks_infer_and_train_where_numba_cannot_compile(before, environment, expected):
    process = subprocess.run(
        [sys.executable, "-c", before + INFERENCE_AND_TRAINING],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != VARIABLE} | environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    said = process.stdout.splitlines()
    assert len(said) == len(expected)
    for line, (what, why) in zip(said, expected.items(), strict=True):
        assert line.startswith("BackendFallback The ")
        assert f"{what} cannot start" in line
        assert why in line


def twice(x):
    """What stands for a pass of inference, whose own take long to compile."""
    return 2 * x


KERNELS = {
    "scan": lambda: numba_kernels.kernel.__wrapped__("forward", "float64"),
    "inference": lambda: inference_numba._compiled_for(types.float32(types.float32))(twice),
}


@pytest.mark.parametrize("load", KERNELS.values(), ids=KERNELS)
def test_a_damaged_cache_entry_is_told_of_and_its_kernel_compiled_without_it(load, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inference_numba, "under_the_name_of_this_version", lambda function, *constants: function)
    monkeypatch.setattr(compiled, "warn_once", lambda text: warnings.warn(text, BackendFallback, stacklevel=2))
    (signature,) = load().signatures
    (entry,) = tmp_path.glob("**/*.nbc")
    entry.write_bytes(entry.read_bytes()[:100])
    with pytest.warns(BackendFallback, match=r"cannot be loaded from Numba's cache.*NUMBA_CACHE_DIR"):
        assert load().signatures == [signature]


def test_a_damaged_cache_is_told_of_once_and_not_asked_again(monkeypatch):
    asked = []

    def import_module(name):
        asked.append(name)
        raise EOFError("Ran out of input")

    monkeypatch.setattr(compiled.importlib, "import_module", import_module)
    with pytest.warns(BackendFallback, match=r"dreams cannot start \(EOFError: Ran out of input\).*NUMBA_CACHE_DIR"):
        assert compiled.started("repmamba.no_such_kernels", "dreams") is None
    assert compiled.started("repmamba.no_such_kernels", "dreams") is None
    assert asked == ["repmamba.no_such_kernels"]
