"""Does upscale choose well between the weights for clean pictures and those for real ones, and by
which thresholds?

Prediction: where the two differ by more than 0.05 dB, the choice is the better one for at least 95
% of the degraded test scenes, once the thresholds of noise and blockiness are fixed on validation
scenes.

A scene is four pictures of a set, reduced and degraded alike, as by one sensor, in fixed, seeded
ways: the chains mild, middle and strong; noise and JPEG of one strength alone; and clean. Noise and
blockiness are measured over its pictures, as `upscale` does over windows of a scene, both weights
enlarge them, and the mean PSNR (esr-rgb) says which was better. On val/, thresholds are searched
that are right most often, each way counting the same. On test/, nothing is chosen: the thresholds
of the package and those of val/ are both shown, with what a wrong choice costs. Blur alone is shown
apart: it is not measured, so nothing can be chosen by it. --together 1 makes every picture a scene.

    python benchmarks/does_it_choose_well.py [--weights x4] [--real FILE] [--images N]
        [--together N] [--reference FOLDER] [--json FILE]

It takes some 20 minutes of CPU time. The thresholds are NOISY and BLOCKY of scene/choice.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import answers
from repmamba.data.degradations import Chain, Stage, generator_for
from repmamba.data.pairs import PairFiles, find_pairs
from repmamba.data.sensors import SensorChain
from repmamba.errors import CheckpointError
from repmamba.evaluate.metrics import METRICS
from repmamba.inference.loading import load
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.quality import blockiness, noise_level
from repmamba.scene.choice import BLOCKY, NOISY

VALIDATION = ("val/ucmerced", "val/rsscn7")
TEST = ("test/ucmerced", "test/rsscn7", "test/epfl_road")
SEED = 0
EQUAL = 0.05  # dB, below which nobody can see which is better

Degrade = Callable[[NDArray[np.generic], np.random.Generator], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One scene in one way: what was measured, and what real pictures' weights gain on it."""

    scene: str
    way: str
    noise: float  # levels of 255
    blockiness: float
    gain: float  # dB, of the weights for real pictures over the others


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = answers.options_on_imagery(__doc__)
    parser.add_argument(
        "--real",
        metavar="NAME|FILE",
        default="x4-real",
        help="those for real pictures [%(default)s]",
    )
    parser.add_argument(
        "--images", type=answers.count, metavar="N", default=32, help="of each set [%(default)s]"
    )
    parser.add_argument(
        "--together",
        type=answers.count,
        metavar="N",
        default=4,
        help="pictures in a scene [%(default)s]",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        clean = load(options.weights)
        real = load(options.real, scale=clean.scale)
    except CheckpointError as missing:
        sys.exit(f"{missing} Name them with --weights and --real.")

    def of_sets(names: Sequence[str]) -> list[Seen]:
        data, both = options.reference / "data", (clean, real)
        return [
            seen
            for name in names
            for scene in scenes(data / name, options.images, options.together)
            for seen in of_scene(scene, both)
        ]

    chosen_on, judged = of_sets(VALIDATION), of_sets(TEST)
    packaged, fitted = (NOISY, BLOCKY), thresholds(measurable(chosen_on))
    rows = [
        {"way": way, **summary([seen for seen in judged if seen.way == way], packaged, fitted)}
        for way in dict.fromkeys(seen.way for seen in judged)
    ]
    whole = summary(measurable(judged), packaged, fitted)
    print(
        f"Thresholds of the package: noise {NOISY:g}, blockiness {BLOCKY:g}; of val/: "
        f"{fitted[0]:g}, {fitted[1]:g}."
    )
    print("| way | scenes | gain of real, dB | right, package | right, val/ | lost, dB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in [*rows, {"way": "all but blur", **whole}]:
        print(
            f"| {row['way']} | {row['scenes']} | {row['gain']:+.2f} | {row['right']:.1%} | "
            f"{row['right_fitted']:.1%} "
            f"| {row['lost']:.3f} |"
        )
    answers.write(
        options.json,
        threads=1,
        together=options.together,
        weights=answers.weights(clean),
        real=answers.weights(real),
        thresholds={"package": packaged, "validation": fitted},
        rows=rows,
        all_but_blur=whole,
        seen=[asdict(one) for one in judged],
    )


def scenes(folder: Path, count: int, together: int) -> list[list[PairFiles]]:
    """Evenly spread pictures of a folder, some together in each scene."""
    files = find_pairs(folder)
    places = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    number = max(1, len(places) // together)  # every number-th: the classes of a set are mixed
    return [[files[place] for place in places[first::number]] for first in range(number)]


def of_scene(files: Sequence[PairFiles], both: Sequence[Upscaler]) -> Iterator[Seen]:
    """All ways of one scene. both: the weights for clean pictures, and those for real ones."""
    pairs = [file.read(both[0].scale) for file in files]
    metric, name = METRICS["esr-rgb.psnr"], pairs[0].name
    for way, degrade in ways(both[0].scale).items():
        windows, gains = [], []
        for pair in pairs:
            # the same draws for each picture of the scene
            lr = degrade(pair.hr, generator_for(SEED, name))
            unit = torch.from_numpy(np.moveaxis(lr, 2, 0) / np.float32(255))
            scores = [
                metric.measure(np.moveaxis(upscaler.run(unit[None])[0].numpy(), 0, 2), pair)
                for upscaler in both
            ]
            windows.append(unit.numpy())
            gains.append(scores[1] - scores[0])
        yield Seen(name, way, noise_level(windows), blockiness(windows), float(np.mean(gains)))


def ways(scale: int) -> dict[str, Degrade]:
    """What is done to a picture, by name."""
    alone = {
        f"{name} {strength:g}": Chain(scale, (Stage(name, strength, strength),))
        for name, strengths in (("noise", (2, 4, 8)), ("jpeg", (90, 75, 60, 40)), ("blur", (3.0,)))
        for strength in strengths
    }
    return {
        "clean": Chain(scale),
        **{name: SensorChain(name, scale) for name in ("mild", "middle", "strong")},
        **alone,
    }


def measurable(seen: Sequence[Seen]) -> list[Seen]:
    """All but what is blurred and nothing else."""
    return [one for one in seen if not one.way.startswith("blur")]


def right(seen: Seen, noisy: float, blocky: float) -> bool:
    """Whether the thresholds choose what is better, or one as good."""
    takes_real = seen.noise >= noisy or seen.blockiness >= blocky
    return abs(seen.gain) < EQUAL or takes_real == (seen.gain > 0)


def lost(seen: Seen, noisy: float, blocky: float) -> float:
    """What a wrong choice costs, in dB."""
    return 0.0 if right(seen, noisy, blocky) else abs(seen.gain)


def thresholds(seen: Sequence[Seen]) -> tuple[float, float]:
    """Noise and blockiness from which on real pictures' weights are taken: right most often, ways
    counting the same.

    Of several that are, the one that loses least.
    """
    counts = {way: sum(one.way == way for one in seen) for way in {one.way for one in seen}}
    share = np.array([1 / counts[one.way] for one in seen])
    noise, blocks, gain = (
        np.array([getattr(one, name) for one in seen]) for name in ("noise", "blockiness", "gain")
    )
    best, found = (-1.0, -np.inf), (NOISY, BLOCKY)
    for noisy in np.arange(0.5, 10.01, 0.1):
        for blocky in np.arange(0.02, 0.81, 0.02):
            takes_real = (noise >= noisy) | (blocks >= blocky)
            wrong = (np.abs(gain) >= EQUAL) & (takes_real != (gain > 0))
            score = (float((share * ~wrong).sum()), -float((share * np.abs(gain) * wrong).sum()))
            if score > best:
                best, found = score, (round(float(noisy), 1), round(float(blocky), 2))
    return found


def summary(
    seen: Sequence[Seen], packaged: tuple[float, float], fitted: tuple[float, float]
) -> dict[str, Any]:
    """What there is to say of some scenes."""
    return {
        "scenes": len(seen),
        "gain": float(np.mean([one.gain for one in seen])),
        "right": float(np.mean([right(one, *packaged) for one in seen])),
        "right_fitted": float(np.mean([right(one, *fitted) for one in seen])),
        "lost": float(np.mean([lost(one, *packaged) for one in seen])),
    }


if __name__ == "__main__":
    main()
