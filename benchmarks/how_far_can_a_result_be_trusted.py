"""How far can a result be trusted, pixel by pixel, and does the ensemble's spread say it better
than contrast does?

Where the eight flips and rotations of an image disagree, the result should be wrong. But so it
should be wherever there is much to see, and that takes no ensemble: the plain predictor is the
local contrast of the input, of its bicubic enlargement or of the result.

Prediction: spread alone beats the contrast of the input and of the bicubic image. Against that of
the result, which shows what the network has drawn, it is about even, and the two together (the
geometric mean of both in 3 x 3 pixels, as inference/confidence.py has it) beat either.

Measured with x4 weights, the mean of the eight as 8-bit RGB against the truth, error: mean of |sr -
hr| over the bands. On val/: which contrast predicts best, alone and two of them together; and the
table from predictor to expected error. On test/, with nothing chosen any more: the rank correlation
with the true error, image by image and in all pixels of a set; the part of the way from chance to
hindsight that is gained by leaving out the pixels predicted worst (sparsification); predicted
against true error, by tenths of the predicted; and the gain of the ensemble in dB. Intervals are 95
%, by bootstrap over the images, of paired differences.

Rule, fixed before test/ was read: the predictor is shipped if, in all three sets of test/, its rank
correlation image by image exceeds that of the best contrast and that of the best two contrasts with
intervals above 0.

    python benchmarks/how_far_can_a_result_be_trusted.py [--weights x4] [--reference FOLDER] [--json
        FILE] [--calibration FILE] [--keep FOLDER] [--images N]

It takes some six minutes of CPU time; with --keep, a stopped run goes on with the images that are
measured already. The plot lies beside the JSON.
--calibration writes the table that `--confidence` reads, to be put beside the weights. The answer
is in
docs/explanation/confidence.md.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import answers
from repmamba.data.pairs import Pair, find_pairs
from repmamba.evaluate.metrics import METRICS
from repmamba.inference.confidence import Calibration, doubt
from repmamba.inference.consistency import make_consistent
from repmamba.inference.ensemble import mean_and_variance
from repmamba.inference.loading import load
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.resize import imresize_torch, to_uint8

VALIDATION = {"val/ucmerced": 30, "val/rsscn7": 30}  # pictures taken, or all if there are fewer
TEST = {"test/ucmerced": 60, "test/rsscn7": 40, "test/epfl_road": 15}
# also with their green band alone, as any other band goes through the network
GREY = {"test/ucmerced": 20}
# every third row and column counts: neighbours say nearly the same, and 3 meets every phase of x4
STEP = 3
POOLED = 250  # pixels of each image in the intervals of what is taken over all pixels of a set

Pixels = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """What an image says."""

    error: Pixels  # (pixels,), grey levels
    predictors: dict[str, Pixels]  # (pixels,) each, rising with the expected error
    made_consistent: tuple[Pixels, Pixels]  # error and doubt of the result with --consistent
    decibels: tuple[float, float]  # of one pass and of the mean of eight


def main() -> None:
    """Measure, print the tables, write the JSON, the plot and the calibration."""
    parser = answers.options_on_imagery(
        __doc__, Path("docs", "explanation", "decisions", "how-far-can-a-result-be-trusted.json")
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="where to write the table of --confidence"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="what was measured of each image, for a run that goes on",
    )
    parser.add_argument(
        "--images", type=answers.count, metavar="N", help="of each set at most, to try it out"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    upscaler = load(options.weights)
    data = options.reference / "data"

    def images_of(name: str, count: int, *, grey: bool = False) -> list[Measured]:
        return list(
            measured(
                data / name, min(count, options.images or count), upscaler, options.keep, grey=grey
            )
        )

    sets = {name: images_of(name, count) for name, count in VALIDATION.items()}
    validation = [image for images in sets.values() for image in images]
    chosen = chosen_contrasts(validation)
    calibration = Calibration.fitted(
        np.concatenate([image.predictors[TOGETHER] for image in validation]) / 255,
        np.concatenate([image.error for image in validation]) / 255,
        network=upscaler.digest,
        measured_on=", ".join(f"{len(images)} of {name}" for name, images in sets.items()),
    )
    if options.calibration is not None:
        options.calibration.write_text(calibration.as_text(), "utf-8")

    tests = {name: images_of(name, count) for name, count in TEST.items()}
    grey = {f"{name}, one band": images_of(name, count, grey=True) for name, count in GREY.items()}
    shown = list(dict.fromkeys([SPREAD, *chosen.values(), TOGETHER]))
    found = {
        "weights": answers.weights(upscaler),
        "chosen_on_validation": chosen,
        "validation": {name: correlation(validation, name) for name in validation[0].predictors},
        "correlation": [
            row for name, images in tests.items() for row in correlations(name, images, shown)
        ],
        "differences": [
            row for name, images in tests.items() for row in differences(name, images, shown)
        ],
        "reliability": [
            row
            for name, images in (tests | grey).items()
            for row in reliability(name, images, calibration)
        ],
        "ensemble": [gain(name, images) for name, images in tests.items()],
        "calibration": {"doubt": list(calibration.doubt), "error": list(calibration.error)},
        "sparsification": {
            name: curve.tolist() for name, curve in sparsification(tests, shown).items()
        },
    }
    answers.write(options.json, threads=1, clock="cpu", **found)
    print_tables(found)
    plot(found, options.json.with_suffix(".png"))


# What is measured of an image


def measured(
    folder: Path, count: int, upscaler: Upscaler, keep: Path | None, *, grey: bool = False
) -> Iterator[Measured]:
    """Some images of a set, drawn by a fixed seed; those that are kept are not measured again."""
    files = find_pairs(folder)
    begun = time.process_time()
    for place in sorted(np.random.default_rng(16).permutation(len(files))[:count]):
        kind = f"{folder.parent.name}-{folder.name}-{place}{'-grey' * grey}"
        name = f"{upscaler.digest[:8]}-{kind}.pickle"
        kept = None if keep is None else keep / name
        if kept is not None and kept.is_file():
            yield pickle.loads(kept.read_bytes())
            continue
        image = of_image(files[place].read(upscaler.scale), upscaler, grey=grey)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(pickle.dumps(image))
        yield image
    seconds = time.process_time() - begun
    print(
        f"{folder.parent.name}/{folder.name}{', one band' * grey}: done after {seconds:.0f} s of "
        "CPU time",
        file=sys.stderr,
    )


def of_image(pair: Pair, upscaler: Upscaler, *, grey: bool) -> Measured:
    """One image; grey: of its green band alone."""
    bands = [1] if grey else [0, 1, 2]
    lr, hr = (
        torch.from_numpy(image[..., bands]).permute(2, 0, 1).contiguous() / 255
        for image in (pair.lr, pair.hr)
    )
    seen = lr.expand(3, -1, -1)[None]
    one, (mean, variance) = upscaler.run(seen)[0], mean_and_variance(upscaler.run, seen)
    sr = mean[0].mean(0, keepdim=True) if grey else mean[0]
    projected = make_consistent(sr, lr, torch.ones_like(lr, dtype=torch.bool), upscaler.scale)
    bicubic = imresize_torch(lr[None], upscaler.scale)[0]
    planes = {
        SPREAD: box(variance[0], 3).mean(0).sqrt(),
        TOGETHER: doubt(sr, variance[0]),
        **{
            f"contrast of the input, {n} x {n}": enlarged_contrast(lr, n, upscaler.scale)
            for n in (3, 5)
        },
        **{f"contrast of the bicubic image, {n} x {n}": contrast(bicubic, n) for n in (5, 9)},
        **{f"contrast of the result, {n} x {n}": contrast(sr, n) for n in (3, 5, 9)},
        "gradient of the bicubic image": gradient(bicubic),
        "gradient of the result": gradient(sr),
    }
    psnr = METRICS["esr-rgb.psnr"].measure
    decibels = (0.0, 0.0) if grey else (psnr(eight_bit(one), pair), psnr(eight_bit(sr), pair))
    return Measured(
        error=sampled(error_of(sr, hr)),
        predictors={name: 255 * sampled(plane) for name, plane in planes.items()},
        made_consistent=(
            sampled(error_of(projected, hr)),
            255 * sampled(doubt(projected, variance[0])),
        ),
        decibels=decibels,
    )


SPREAD = "spread"
TOGETHER = "spread and contrast"


def eight_bit(sr: Tensor) -> NDArray[np.uint8]:
    """(bands, H, W) in unit -> (H, W, bands)."""
    return np.moveaxis(to_uint8(sr.numpy()), 0, 2)


def error_of(sr: Tensor, hr: Tensor) -> Tensor:
    """The mean of |sr - hr| over the bands, of the 8-bit result, in grey levels: (H, W)."""
    return (torch.from_numpy(to_uint8(sr.numpy())).double() - 255 * hr.double()).abs().mean(0)


def sampled(plane: Tensor) -> Pixels:
    """(H, W) -> those pixels that count, (pixels,)."""
    pixels: Pixels = plane[1::STEP, 1::STEP].double().numpy().ravel()
    return pixels


def box(planes: Tensor, edge: int) -> Tensor:
    """The mean in the square around each pixel."""
    return F.avg_pool2d(
        F.pad(planes[None].double(), (edge // 2,) * 4, mode="replicate"), edge, stride=1
    )[0]


def contrast(planes: Tensor, edge: int) -> Tensor:
    """The standard deviation in the square around each pixel, root mean square over the bands: (H,
    W).
    """
    numbers = planes.double()
    return (box(numbers.square(), edge) - box(numbers, edge).square()).mean(0).clamp_min(0).sqrt()


def enlarged_contrast(lr: Tensor, edge: int, scale: int) -> Tensor:
    """The contrast of the input, enlarged by bicubic interpolation."""
    return imresize_torch(contrast(lr, edge)[None, None], scale)[0, 0].clamp_min(0)


def gradient(planes: Tensor) -> Tensor:
    """Its length, by central differences, root mean square over the bands: (H, W)."""
    padded = F.pad(planes[None].double(), (1, 1, 1, 1), mode="replicate")[0]
    across, down = (
        padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2],
        padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1],
    )
    return (across.square() + down.square()).mean(0).sqrt()


# What is said of a set


def chosen_contrasts(images: list[Measured]) -> dict[str, str]:
    """Which predictors without an ensemble rank best on val/: of what was there before, of all, and
    two multiplied.
    """
    plain = [name for name in images[0].predictors if name not in (SPREAD, TOGETHER)]
    of_result = [name for name in plain if name.startswith("contrast of the result")]
    kinds = {
        "before": [name for name in plain if "of the result" not in name],
        "contrast": plain,
        "two_contrasts": [f"{a}{TIMES}{b}" for a, b in combinations(of_result, 2)],
    }
    return {
        kind: max(names, key=lambda name: correlation(images, name))
        for kind, names in kinds.items()
    }


TIMES = " times "


def predictor(image: Measured, name: str) -> Pixels:
    """A predictor by its name; two of them multiplied, where that is the name of two."""
    product: Pixels = np.prod([image.predictors[part] for part in name.split(TIMES)], axis=0)
    return product


def correlation(images: list[Measured], name: str) -> float:
    """The mean over the images of the rank correlation with the error."""
    return float(np.mean([spearman(predictor(image, name), image.error) for image in images]))


def correlations(
    set_name: str, images: list[Measured], names: list[str]
) -> Iterator[dict[str, Any]]:
    """One row for each predictor: by image, and over all pixels."""
    error = np.concatenate([image.error for image in images])
    for name in names:
        pixels = np.concatenate([predictor(image, name) for image in images])
        yield {
            "set": set_name,
            "images": len(images),
            "predictor": name,
            "correlation": correlation(images, name),
            "correlation_of_all_pixels": spearman(pixels, error),
            "sparsification": float(
                np.mean([gained(predictor(image, name), image.error) for image in images])
            ),
            "sparsification_of_all_pixels": gained(pixels, error),
        }


def differences(
    set_name: str, images: list[Measured], names: list[str]
) -> Iterator[dict[str, Any]]:
    """What spread alone and both together gain over contrast and over two contrasts, with
    intervals.
    """
    rng = np.random.default_rng(17)
    few = [rng.permutation(len(image.error))[:POOLED] for image in images]
    for ours in (SPREAD, TOGETHER):
        for other in (name for name in names if name not in (SPREAD, TOGETHER)):
            row: dict[str, Any] = {"set": set_name, "predictor": ours, "against": other}
            for measure, function in (("correlation", spearman), ("sparsification", gained)):
                each = [
                    function(predictor(image, ours), image.error)
                    - function(predictor(image, other), image.error)
                    for image in images
                ]
                row[measure] = interval(partial(mean_of, np.array(each)), len(each))
            parts = [
                (predictor(image, ours)[at], predictor(image, other)[at], image.error[at])
                for image, at in zip(images, few, strict=True)
            ]
            row["correlation_of_all_pixels"] = interval(partial(pooled, parts), len(parts), 300)
            yield row


def mean_of(values: Pixels, chosen: NDArray[np.intp]) -> float:
    """The mean of the chosen ones of some values, one an image."""
    return float(values[chosen].mean())


def pooled(parts: list[tuple[Pixels, Pixels, Pixels]], chosen: NDArray[np.intp]) -> float:
    """The difference of two rank correlations over all pixels of the chosen images."""
    ours, other, error = (np.concatenate([parts[n][which] for n in chosen]) for which in range(3))
    return spearman(ours, error) - spearman(other, error)


def interval(
    of: Callable[[NDArray[np.intp]], float], images: int, times: int = 10000
) -> list[float]:
    """A figure of some images, with the ends of its 95 % bootstrap interval."""
    rng = np.random.default_rng(18)
    drawn = [of(rng.integers(0, images, images)) for _ in range(times)]
    return [of(np.arange(images)), *np.quantile(drawn, (0.025, 0.975)).tolist()]


def reliability(
    set_name: str, images: list[Measured], calibration: Calibration
) -> Iterator[dict[str, Any]]:
    """Predicted and true error, means over tenths of the predicted, least first: as it comes, and
    made consistent.
    """
    for made_consistent in (False, True):
        pairs = [
            im.made_consistent if made_consistent else (im.error, im.predictors[TOGETHER])
            for im in images
        ]
        error = np.concatenate([pair[0] for pair in pairs])
        expected = 255 * calibration.expected_error(
            np.concatenate([pair[1] for pair in pairs]) / 255
        )
        order = np.argsort(expected, kind="stable")
        yield {
            "set": set_name,
            "images": len(images),
            "consistent": made_consistent,
            "correlation": float(np.mean([spearman(pair[1], pair[0]) for pair in pairs])),
            "predicted": [float(expected[part].mean()) for part in np.array_split(order, 10)],
            "true": [float(error[part].mean()) for part in np.array_split(order, 10)],
            "true_quartiles": [
                np.quantile(error[part], (0.25, 0.75)).tolist()
                for part in np.array_split(order, 10)
            ],
        }


def gain(set_name: str, images: list[Measured]) -> dict[str, Any]:
    """What the ensemble adds to PSNR, by the rule esr-rgb."""
    one, eight = np.array([image.decibels for image in images]).T
    added = interval(partial(mean_of, eight - one), len(images))
    return {
        "set": set_name,
        "images": len(images),
        "one": float(one.mean()),
        "eight": float(eight.mean()),
        "gain": added,
    }


def spearman(a: Pixels, b: Pixels) -> float:
    """Rank correlation, equal numbers sharing the mean of their ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def ranks(values: Pixels) -> Pixels:
    """Their ranks from 0, (pixels,)."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks: Pixels = np.cumsum(counts) - (counts + 1) / 2
    return mean_ranks[places]


def left(predicted: Pixels, error: Pixels) -> Pixels:
    """The mean error of what is left when the pixels predicted worst are taken out, none first, one
    by one.
    """
    worst_last = error[np.argsort(predicted, kind="stable")]
    means: Pixels = (np.cumsum(worst_last) / np.arange(1, len(error) + 1))[::-1]
    return means


def gained(predicted: Pixels, error: Pixels) -> float:
    """How far the mean of `left` gets from that of chance (0) to that of the error itself, known in
    hindsight (1).
    """
    chance, best = error.mean(), left(error, error).mean()
    return float((chance - left(predicted, error).mean()) / (chance - best))


def sparsification(tests: dict[str, list[Measured]], names: list[str]) -> dict[str, Pixels]:
    """For each predictor, and for hindsight: the mean error left, relative to that of all pixels,
    mean over images.
    """
    images = [image for images in tests.values() for image in images]
    curves = {}
    for name in [*names, "hindsight"]:
        each = []
        for image in images:
            by = image.error if name == "hindsight" else predictor(image, name)
            curve = left(by, image.error) / image.error.mean()
            each.append(curve[(SHARES * (len(curve) - 1)).astype(int)])
        curves[name] = np.mean(each, axis=0)
    return curves


SHARES = np.linspace(0, 0.99, 100)  # of the pixels taken out


# What is shown


def print_tables(found: dict[str, Any]) -> None:
    """Everything of the JSON that a reader compares."""
    print("| predictor, on val/ | correlation, image by image |\n| --- | ---: |")
    for name, value in sorted(found["validation"].items(), key=lambda row: -row[1]):
        print(f"| {name} | {value:.3f} |")
    print("\n| set | predictor | correlation | of all pixels | sparsification | of all pixels |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in found["correlation"]:
        numbers = f"{row['correlation']:.3f} | {row['correlation_of_all_pixels']:.3f}"
        numbers += f" | {row['sparsification']:.3f} | {row['sparsification_of_all_pixels']:.3f}"
        print(f"| {row['set']} ({row['images']}) | {row['predictor']} | {numbers} |")
    print("\n| set | | against | correlation | of all pixels | sparsification |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for row in found["differences"]:
        measures = ("correlation", "correlation_of_all_pixels", "sparsification")
        numbers = " | ".join(
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row[measure]) for measure in measures
        )
        print(f"| {row['set']} | {row['predictor']} | {row['against']} | {numbers} |")
    print("\n| set | consistent | correlation | predicted error by tenths, levels | true, levels |")
    print("| --- | --- | ---: | --- | --- |")
    for row in found["reliability"]:
        numbers = " | ".join(
            " ".join(f"{value:.1f}" for value in row[which]) for which in ("predicted", "true")
        )
        print(
            f"| {row['set']} ({row['images']}) | {row['consistent']} | {row['correlation']:.3f} | "
            f"{numbers} |"
        )
    print("\n| set | one pass, dB | eight, dB | gain |\n| --- | ---: | ---: | ---: |")
    for row in found["ensemble"]:
        change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["gain"])
        print(
            f"| {row['set']} ({row['images']}) | {row['one']:.3f} | {row['eight']:.3f} | {change} |"
        )


def plot(found: dict[str, Any], path: Path) -> None:
    """Predicted against true error by tenths, with the quartiles; and sparsification."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    reliable, sparse = figure.subplots(1, 2)
    rows = [row for row in found["reliability"] if not row["consistent"] and row["set"] in TEST]
    for place, row in enumerate(rows):
        predicted, true = row["predicted"], row["true"]
        lower, upper = np.array(row["true_quartiles"]).T
        reliable.fill_between(predicted, lower, upper, alpha=0.12, color=f"C{place}", linewidth=0)
        reliable.plot(
            predicted,
            true,
            "o-",
            markersize=4,
            color=f"C{place}",
            label=f"{row['set']} ({row['images']})",
        )
    most = max(max(row["true_quartiles"][-1]) for row in rows)
    reliable.plot([0, most], [0, most], color="grey", linewidth=0.8)
    furthest = 1.1 * max(max(row["predicted"]) for row in rows)
    reliable.set(
        xlabel="expected error (grey levels), tenths of the pixels",
        ylabel="true error: mean, and middle half of the pixels",
        title="reliability: below the line, better than said",
        xlim=(0, furthest),
        ylim=(0, most),
    )
    reliable.legend(fontsize=8, loc="upper left")
    for place, (name, curve) in enumerate(found["sparsification"].items()):
        dashed = "--" if name == "hindsight" else "-"
        sparse.plot(
            100 * SHARES,
            curve,
            dashed,
            color="grey" if name == "hindsight" else f"C{place}",
            label=name,
        )
    sparse.set(
        xlabel="% of the pixels left out, those expected worst first",
        ylabel="mean error of the others, all pixels: 1",
        title="sparsification, mean over the images of test/",
        ylim=(0, 1.02),
    )
    sparse.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
