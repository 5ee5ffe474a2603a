"""Which backend runs: by device, by argument, by environment variable, and when one cannot
start.
"""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from repmamba.errors import UsageError
from repmamba.scan.backends import BACKENDS, VARIABLE, choose, explain, survey

CPU = torch.device("cpu")
ON_CPU = [backend for backend in BACKENDS if backend.serves(CPU)]
# A process without a library of kernels.
WITHOUT_KERNELS = """
import warnings
from pathlib import Path
from repmamba.kernels import library
library.PATH = Path("nowhere/_kernels.so")
import torch
from repmamba.scan.backends import explain
from repmamba.scan.selective import selective_scan

warnings.simplefilter("always")
u, B = torch.rand(1, 4, 9), torch.rand(1, 2, 16, 9)
arguments = (u, torch.rand(1, 4, 9), -torch.rand(4, 16), B, B.flip(-1), torch.rand(4))
with warnings.catch_warnings(record=True) as caught:
    results = [selective_scan(*arguments, backend=name) for name in (None, None, "native")]
expected = selective_scan(*arguments, backend="definition")
assert all(torch.allclose(result, expected, rtol=1e-5, atol=1e-6) for result in results)
print([(warning.category.__name__, str(warning.message)) for warning in caught])
print(explain("cpu"))
"""


@pytest.fixture(autouse=True)
def no_wish_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_cpu_uses_the_compiled_scan_and_explains_why():
    assert choose(CPU).backend.name == "native"
    assert explain("cpu").name == "native"


def test_other_devices_use_the_chunked_scan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(torch.device("mps")).backend.name == "chunked"


@pytest.mark.parametrize("backend", ON_CPU, ids=str)
def test_the_argument_overrides_the_environment_variable_and_that_the_order(backend, monkeypatch):
    monkeypatch.setenv(VARIABLE, backend.name)
    assert choose(CPU).backend == backend
    assert VARIABLE in explain("cpu").why
    for other in ON_CPU:
        assert choose(CPU, other.name).backend == other


def test_an_unknown_name_is_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(UsageError, match="triton, native, chunked, definition"):
        choose(CPU, "fortran")
    monkeypatch.setenv(VARIABLE, "cobol")
    with pytest.raises(UsageError, match=f"{VARIABLE} requests the scan 'cobol'"):
        choose(CPU)


def test_a_backend_that_does_not_support_the_device_falls_back_with_a_warning():
    choice = explain("mps", "native")
    assert choice.name == "chunked"
    assert "does not run on mps" in choice.why


def test_a_backend_that_does_not_support_the_type_falls_back():
    assert choose(CPU, dtype=torch.float64).backend.name == "chunked"
    assert [
        name for name in map(str, ON_CPU) if choose(CPU, name, torch.float64).backend.name == name
    ] == [backend.name for backend in ON_CPU if torch.float64 in backend.dtypes]


def test_the_survey_tells_which_backends_run_and_why_not():
    states = survey("cpu")
    assert list(states) == [backend.name for backend in BACKENDS]
    assert {name for name, state in states.items() if state == "Runs on cpu."} == {
        str(backend) for backend in ON_CPU
    }
    assert states["triton"] == "Does not run on cpu: it is for cuda."
    assert survey("mps")["native"] == "Does not run on mps: it is for cpu."


def test_without_kernels_the_next_backend_is_used_with_one_warning():
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERNELS],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    caught, choice = process.stdout.splitlines()
    assert caught.count("BackendFallback") == 1
    assert "'native' cannot start (OSError: this installation has no _kernels.so" in caught
    assert "'chunked' instead" in caught
    assert "name='chunked'" in choice
