"""Would a runtime made for inference be faster than the compiled passes?

Question: one 128x128 input at x4, float32, the fused network without its scan, which those runtimes
have no operation for: our compiled passes, torch's operations one by one, torch.compile, OpenVINO
and ONNX Runtime, in one run. What is not installed is left out, and said to be; torch.compile wants
a C++ compiler and the headers of Python. Prediction: torch.compile within 1.3 times the passes, the
others slower; none so fast that a scan of its own, and a conversion for every user, would pay.

    pip install -e '.[bench]'
    python benchmarks/against_other_runtimes.py [--threads 2] [--rounds 9] [--json FILE]
"""

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

import measuring
from network import Stages, in_passes, in_the_scan, operations_of_torch
from repmamba.network.fusion import FusedRMB

REST = 0.3  # seconds: the threads of a runtime that has just computed go on looking for work

WHOLE, OURS, TORCH = "compiled passes, with the scan", "compiled passes", "operations of torch"
OTHERS = ("torch.compile", "OpenVINO", "ONNX Runtime")


def onnx_runtime(network: nn.Module, image: Tensor, threads: int) -> measuring.Run:
    """The network as ONNX Runtime has it."""
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        torch.onnx.export(network, (image,), file, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, given)


def openvino(network: nn.Module, image: Tensor, threads: int) -> measuring.Run:
    """The network as OpenVINO has it, in float32."""
    import openvino  # type: ignore[import-not-found,unused-ignore]

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    # elsewhere the conversion tells OpenVINO's makers of it
    with patch.dict(os.environ, CI="true"):
        model = openvino.convert_model(network, example_input=image)
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda: compiled([image.numpy()])


def installed(*packages: str) -> bool:
    """Whether all of them are."""
    return all(importlib.util.find_spec(package) for package in packages)


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=9)
    warnings.simplefilter("ignore")  # what converters remark on the code that they trace
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network, image = operations_of_torch(), torch.rand(1, 3, 128, 128)
    whole, stages = in_passes(network, torch.float32), Stages(network, image)
    assert whole is not None
    candidates: dict[str, measuring.Run] = {
        measuring.CONVOLUTION: measuring.convolution(),
        WHOLE: lambda: whole(image),
        OURS: lambda: stages.run(lambda stage: not in_the_scan(stage)),
        TORCH: lambda: network(image),
    }
    # In the place of the scan there is nothing.
    with patch.object(FusedRMB, "scan", lambda self, pooled: pooled), torch.inference_mode():
        if shutil.which("c++"):
            compiled = torch.compile(network)
            candidates["torch.compile"] = lambda: compiled(image)
        if installed("openvino"):
            candidates["OpenVINO"] = openvino(network, image, options.threads)
        if installed("onnxruntime", "onnx", "onnxscript"):
            candidates["ONNX Runtime"] = onnx_runtime(network, image, options.threads)
        if missing := [name for name in OTHERS if name not in candidates]:
            print(
                f"Left out, since what they need is not installed: {', '.join(missing)}.",
                file=sys.stderr,
            )
        times = measuring.measure(candidates, options, rest=REST)
    found = measuring.rows(times, measuring.UNIT)
    against = {
        name: measuring.ratio(times, name, OURS) for name in (TORCH, *OTHERS) if name in candidates
    }
    print(measuring.table(found))
    for name, value in against.items():
        print(f"{name}: {value:.2f} times {OURS}")
    measuring.write(options, times=found, times_compiled_passes=against)


if __name__ == "__main__":
    main()
