"""How much faster is the network than a light window transformer of its size?

Question: one 128x128 input at x4, float32: our fused network beside Swin2SR as the transformers
package has it, in its light form (embed_dim 60, four stages of six, window 8, pixelshuffledirect;
random weights), in one run. Prediction: at least four times faster.

    pip install -e '.[bench]'
    python benchmarks/against_a_light_window_transformer.py [--threads 2] [--clock wall] [--rounds
    9] [--json FILE]
"""

import sys

import torch

import measuring
from network import fused, operations_of_torch

OURS, THEIRS = "RepMamba, fused", "Swin2SR, light"


def swin2sr() -> torch.nn.Module:
    """Swin2SR in its light form, random weights."""
    try:
        from transformers import (  # type: ignore[import-not-found,unused-ignore]
            Swin2SRConfig,
            Swin2SRForImageSuperResolution,
        )
    except ImportError:
        sys.exit("This question needs the transformers package: pip install -e '.[bench]'.")

    settings = Swin2SRConfig(
        image_size=64,
        embed_dim=60,
        depths=[6, 6, 6, 6],
        num_heads=[6, 6, 6, 6],
        window_size=8,
        mlp_ratio=2.0,
        upscale=4,
        upsampler="pixelshuffledirect",
    )
    network: torch.nn.Module = Swin2SRForImageSuperResolution(settings).eval()
    return network


def main() -> None:
    """Time, print the table, write the JSON."""
    options = measuring.start(__doc__, rounds=9)
    ours, theirs, image = fused(), swin2sr(), torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        times = measuring.measure(
            {
                measuring.CONVOLUTION: measuring.convolution(),
                OURS: lambda: ours(image),
                THEIRS: lambda: theirs(pixel_values=image),
            },
            options,
        )
    found, faster = measuring.rows(times, measuring.UNIT), measuring.ratio(times, THEIRS, OURS)
    print(measuring.table(found))
    print(
        f"\n{THEIRS} takes {faster:.2f} times as long, with {parameters(theirs)} parameters to "
        f"{parameters(operations_of_torch())}"
    )
    measuring.write(options, times=found, times_ours=faster)


def parameters(network: torch.nn.Module) -> str:
    """Their number, in thousands."""
    values = [*network.parameters(), *network.buffers()]
    return f"{sum(tensor.numel() for tensor in values) / 1e3:.0f} K"


if __name__ == "__main__":
    main()
