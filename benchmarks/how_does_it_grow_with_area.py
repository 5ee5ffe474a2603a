"""How do time and memory grow with the area?

Question: one call of the fused network at x4, inputs of 64 to 512 pixels a side: time, and the
process's peak memory above what the imports and the network take. Prediction: four times the pixels
take at most 4.3 times the time; a 256x256 tile takes less than 800 MB.

    python benchmarks/how_does_it_grow_with_area.py [--threads 2] [--clock wall] [--rounds 9]
    [--json FILE]
"""

import json
import os
import subprocess
import sys
from functools import partial

import torch

import measuring
from network import fused

SIDES = (64, 128, 256, 512)
PEAK = """
import sys, torch
from repmamba.network.config import NetworkConfig
from repmamba.network.fusion import fuse
from repmamba.network.repmamba import RepMamba

torch.set_num_threads(int(sys.argv[2]))
network = fuse(RepMamba(NetworkConfig()))

def told(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith(field))

with torch.inference_mode():
    before = told("VmRSS")
    for _ in range(2):
        network(torch.rand(1, 3, int(sys.argv[1]), int(sys.argv[1])))
print(told("VmHWM") - before)
"""


def peak_memory(side: int, threads: int) -> float:
    """MB above the import and the network, in a process of its own with the default allocator; on
    Linux.

    Loading the compiled passes is included.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in measuring.ALLOCATOR
    }
    command = [sys.executable, "-c", PEAK, str(side), str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    memory: float = json.loads(done.stdout)
    return memory


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=9)
    network = fused()
    images = {f"{side} x {side}": torch.rand(1, 3, side, side) for side in SIDES}
    candidates = {measuring.CONVOLUTION: measuring.convolution()}
    candidates |= {name: partial(network, image) for name, image in images.items()}
    with torch.inference_mode():
        times = measuring.measure(candidates, options)
    found = measuring.rows(times, measuring.UNIT)
    sizes = found[1:]
    for row, side, before in zip(sizes, SIDES, [None, *images], strict=False):
        row["units_of_its_own"] = row["units"] * (128 / side) ** 2
        row["times_a_quarter"] = measuring.ratio(times, row["what"], before) if before else None
        row["memory_mb"] = peak_memory(side, options.threads) if sys.platform == "linux" else None
    print(
        f"{'input':<12} {'ms':>9} {'units of its own':>17} {'times a quarter':>16} "
        f"{'memory, MB':>11}"
    )
    for row in sizes:
        growth = f"{row['times_a_quarter']:.2f}" if row["times_a_quarter"] else ""
        memory = f"{row['memory_mb']:.0f}" if row["memory_mb"] else ""
        print(
            f"{row['what']:<12} {row['ms']:>9.1f} {row['units_of_its_own']:>17.2f} {growth:>16} "
            f"{memory:>11}"
        )
    measuring.write(options, times=found)


if __name__ == "__main__":
    main()
