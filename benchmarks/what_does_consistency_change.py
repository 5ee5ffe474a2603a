"""What does --consistent change in a result, in decibels and in what the result says of its input?

Prediction: results that are made to reduce to their input gain a little PSNR, since the truth does
so too and an orthogonal projection onto what the truth fulfils moves nothing away from it; the
difference to the input falls from about a grey level to the rounding of 8 bit.

Measured on the validation pictures, x4: PSNR by the field's rule (8-bit RGB, 4 pixels cut off), and
the difference between the input and the 8-bit result made small again by imresize. Pixels that a
clipped one of the result reaches (0 or 255) are left out of the differences, as they are in the
promise.

    python benchmarks/what_does_consistency_change.py [--weights x4] [--reference FOLDER] [--json
    FILE]

The answer is in docs/explanation/consistency.md, under "In numbers".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import answers
from repmamba.data.images import find_images, read_image
from repmamba.evaluate.metrics import psnr
from repmamba.inference.consistency import make_consistent
from repmamba.inference.loading import load
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.resize import imresize, to_uint8


def main() -> None:
    """Measure, print the table, write the JSON."""
    options = answers.options_on_imagery(__doc__).parse_args()
    pictures = options.reference / "data" / "val"
    torch.set_num_threads(1)
    upscaler = load(options.weights)
    rows = [row for folder in sorted(pictures.iterdir()) for row in of_set(folder, upscaler)]
    print("| pictures | | PSNR | mean difference, levels | within one level |")
    print("| --- | --- | ---: | ---: | ---: |")
    for row in rows:
        way = "consistent" if row["consistent"] else "as it came"
        numbers = f"{row['psnr']:.3f} dB | {row['mean_difference']:.3f} | {row['within_one']:.2%}"
        print(f"| {row['set']} ({row['pictures']}) | {way} | {numbers} |")
    answers.write(options.json, threads=1, weights=answers.weights(upscaler), rows=rows)


def of_set(folder: Path, upscaler: Upscaler) -> list[dict[str, Any]]:
    """Two rows for a folder of pictures: results as they come, and made consistent."""
    found: dict[bool, list[tuple[float, NDArray[np.float64]]]] = {False: [], True: []}
    paths = find_images(folder)
    for path in paths:
        hr = read_image(path)[..., :3].astype(np.float64)
        hr = hr[
            tuple(slice(0, length // upscaler.scale * upscaler.scale) for length in hr.shape[:2])
        ]
        small = to_uint8(imresize(hr / 255, 1 / upscaler.scale))
        lr = torch.from_numpy(np.ascontiguousarray(np.moveaxis(small, 2, 0))).float() / 255
        sr = upscaler.run(lr[None])[0]
        made = make_consistent(sr, lr, torch.ones_like(lr, dtype=torch.bool), upscaler.scale)
        for way, result in ((False, sr), (True, made)):
            eight_bit = np.moveaxis(to_uint8(result.numpy()), 0, 2)
            found[way].append(
                (
                    psnr(eight_bit, hr, crop=upscaler.scale),
                    differences(eight_bit, small, upscaler.scale),
                )
            )
    rows = []
    for way, results in found.items():
        every = np.concatenate([difference for _, difference in results])
        rows.append(
            {
                "set": folder.name,
                "pictures": len(paths),
                "consistent": way,
                "psnr": float(np.mean([value for value, _ in results])),
                "mean_difference": float(every.mean()),
                "within_one": float((every <= 1).mean()),
            }
        )
    return rows


def differences(sr: NDArray[np.uint8], lr: NDArray[np.uint8], scale: int) -> NDArray[np.float64]:
    """|imresize(sr) - lr| of all numbers that no clipped one of sr (h, w, 3) reaches, in grey
    levels.
    """
    difference = np.abs(imresize(sr.astype(np.float64), 1 / scale) - lr)
    clipped = torch.from_numpy(((sr == 0) | (sr == 255)).astype(np.float32)).permute(2, 0, 1)
    # the kernel is 4 lr pixels wide
    reach = F.max_pool2d(clipped, 4 * scale, stride=scale, padding=3 * scale // 2)
    counted: NDArray[np.float64] = difference[reach.permute(1, 2, 0).numpy() == 0]
    return counted


if __name__ == "__main__":
    main()
