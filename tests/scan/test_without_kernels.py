"""Without compiled kernels."""

import os
import subprocess
import sys

from repmamba.scan.backends import VARIABLE

INFERENCE_AND_TRAINING_WITHOUT_KERNELS = """
import warnings
from pathlib import Path
import torch
from repmamba.kernels import library
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import fuse
from repmamba.network.repmamba import RepMamba
from repmamba.network.rmb import RMB

library.PATH = Path("nowhere/_kernels.so")
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


def test_networks_infer_and_train_without_kernels_with_one_warning():
    process = subprocess.run(
        [sys.executable, "-c", INFERENCE_AND_TRAINING_WITHOUT_KERNELS],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (said,) = process.stdout.splitlines()
    assert said.startswith(
        "BackendFallback The scan 'native' cannot start (OSError: this installation has no _kernels"
    )
    assert said.endswith("The scan runs on 'chunked' instead.")
