"""How much faster is a call with more threads, and how much more is done with as many images side
by side?

Question: inputs of 128x128 at x4, float32: one call on 1 to all cores, and one image a core, each
on one thread, as a scene's tiles are computed. Prediction: two threads 1.7 times one; two images
side by side as much as two calls of one thread, so 1.9 times.

    python benchmarks/how_does_it_grow_with_threads.py [--clock wall] [--rounds 15] [--json FILE]
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

import measuring
from network import fused


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=15, threads=None)
    cores = options.threads
    network, image = fused(), torch.rand(1, 3, 128, 128)
    counts = sorted({1 << power for power in range(cores.bit_length())} | {cores})

    def on_threads(count: int) -> torch.Tensor:
        torch.set_num_threads(count)
        with torch.inference_mode():
            return network(image)

    with ThreadPoolExecutor(cores) as pool:
        candidates: dict[str, measuring.Run] = {measuring.CONVOLUTION: measuring.convolution()}
        candidates |= {
            f"one image, {count} thread{'s' * (count > 1)}": partial(on_threads, count)
            for count in counts
        }
        beside = f"{cores} image{'s' * (cores > 1)}, a thread each"
        candidates[beside] = lambda: list(pool.map(on_threads, [1] * cores))
        with torch.inference_mode():
            times = measuring.measure(candidates, options)
    found = measuring.rows(times, measuring.UNIT)
    one = "one image, 1 thread"
    faster = {name: 1 / measuring.ratio(times, name, one) for name in list(candidates)[2:-1]}
    faster[beside] = cores / measuring.ratio(times, beside, one)
    print(measuring.table(found))
    for name, value in faster.items():
        print(f"{name}: {value:.2f} times the images of one thread in the same time")
    measuring.write(options, times=found, images_of_one_thread=faster)


if __name__ == "__main__":
    main()
