"""What does a network cost that runs as an exported file, beside our own call?

Question: one 128x128 input at x4, float32: our own call, the export in ONNX Runtime and in
OpenVINO, pair by pair in one run; how long ONNX Runtime takes to open the file, and the size of the
file. What is not installed is left out. Prediction: ONNX Runtime within 6 times our own call,
OpenVINO within 12, the file under 6 MB and open within 2 s.

    pip install -e '.[bench]'
    python benchmarks/what_an_export_costs.py [--threads 2] [--rounds 5] [--json FILE]
"""

import sys
import time

import numpy as np
import torch

import measuring
from network import in_passes, operations_of_torch
from repmamba.exporting.network import InputSize
from repmamba.exporting.onnx_file import graph_of, model_of
from repmamba.exporting.programs import ANY
from repmamba.inference.exported import LR
from repmamba.inference.onnx_runner import open_session

REST = 0.3  # seconds: the threads of a runtime that has just computed go on looking for work

OURS, ONNX, OPENVINO = "our own call", "ONNX Runtime", "OpenVINO"


def openvino(content: bytes, image: np.ndarray, threads: int) -> measuring.Run:
    """The file in OpenVINO, in float32."""
    import openvino  # type: ignore[import-not-found,unused-ignore]

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda: compiled([image])


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=5)
    network, image = operations_of_torch(), torch.rand(1, 3, 128, 128)
    ours = in_passes(network, torch.float32)
    assert ours is not None
    with torch.no_grad():
        graph = graph_of(network, InputSize(), ANY, half=False)
        content = model_of(graph, network, InputSize()).SerializeToString()
    start = time.perf_counter()
    session = open_session(content, threads=options.threads)
    opened = time.perf_counter() - start
    given = {LR: image.numpy()}
    candidates: dict[str, measuring.Run] = {
        measuring.CONVOLUTION: measuring.convolution(),
        OURS: lambda: ours(image),
        ONNX: lambda: session.run(None, given),
    }
    try:
        candidates[OPENVINO] = openvino(content, image.numpy(), options.threads)
    except ImportError:
        print("Left out, since it is not installed: OpenVINO.", file=sys.stderr)
    with torch.inference_mode():
        times = measuring.measure(candidates, options, rest=REST)
    found = measuring.rows(times, measuring.UNIT)
    against = {
        name: measuring.ratio(times, name, OURS) for name in (ONNX, OPENVINO) if name in candidates
    }
    print(measuring.table(found))
    for name, value in against.items():
        print(f"{name}: {value:.2f} times {OURS}")
    size, nodes = len(content), len(graph.nodes)
    print(f"The file: {nodes:,} nodes, {size / 1e6:.1f} MB, opened by {ONNX} in {opened:.2f} s")
    measuring.write(
        options, times=found, times_our_own_call=against, nodes=nodes, bytes=size, opened=opened
    )


if __name__ == "__main__":
    main()
