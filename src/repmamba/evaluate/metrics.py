"""Metrics, and the rules by which the field's papers apply them.

The same images score up to several dB apart by different rules, so each number is printed with the
name of its rule. METRICS lists each metric of each rule: unit, direction, preprocessing, and how
images are averaged; `register_metric` adds to it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repmamba.data.pairs import Pair
from repmamba.errors import ShapeMismatch, UsageError
from repmamba.evaluate import perceptual
from repmamba.pixels.colour import luma
from repmamba.pixels.resize import imresize

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
TTST_MULTIPLE = 4  # its script crops to a multiple of four at every scale
EQUAL_IMAGES_PUBLISHED = 100.0  # dB, in place of a division by zero

Image = NDArray[np.generic]
Plane = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Metric:
    """One measure by one rule."""

    name: str  # "esr-rgb.psnr": the rule and the measure
    unit: str  # "dB", "degrees" or ""
    higher_is_better: bool
    mean: Literal["images", "classes"]  # over images, or over the means of class folders
    how: str  # preprocessing, in one line that is printed with the results
    measure: Callable[[Image, Pair], float]  # (sr as for `score`, its pair)
    bands: int | None = None  # required number of bands; None for any

    def __repr__(self) -> str:
        return f"<Metric {self.heading}>"

    @property
    def heading(self) -> str:
        """The name, with the unit if there is one: "esr-rgb.psnr [dB]"."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    @property
    def rule(self) -> str:
        """The name of the rule: the first part of the metric's name."""
        return self.name.partition(".")[0]


def psnr(sr: Image, hr: Image, *, peak: float = 255.0, crop: int = 0) -> float:
    """Peak signal-to-noise ratio in dB, higher is better; inf for equal images.

    Source: 10 log10(peak^2 / mean((sr - hr)^2)).

    sr, hr: (H, W) or (H, W, C), 0 to peak; compared in float64, all bands together.
    peak: The largest value.  crop: Pixels to ignore on each side.
    Raises ShapeMismatch: the shapes differ, or nothing is left after the crop.
    """
    _same_shape(sr, hr)
    error = _cropped(sr, crop).astype(np.float64) - _cropped(hr, crop).astype(np.float64)
    squared = float(np.mean(np.square(error)))
    return 10 * float(np.log10(peak**2 / squared)) if squared else float("inf")


def ssim(
    sr: Image,
    hr: Image,
    *,
    peak: float = 255.0,
    crop: int = 0,
    edges: Literal["valid", "zero"] = "valid",
) -> float:
    """Structural similarity, 1 for equal images; the mean over pixels and bands.

    Source: Wang et al. 2004, a Gaussian of 11x11 and sigma 1.5, K1 = 0.01, K2 = 0.03, variances as
    E[x^2] - E[x]^2.

    sr, hr: (H, W) or (H, W, C), 0 to peak; computed in float64, band by band.
    peak: The largest value.  crop: Pixels to ignore on each side.
    edges: "valid" uses only windows inside the image, "zero" one window per pixel with zeros
      outside.
    Raises ShapeMismatch: the shapes differ, or the image is smaller than a window.
    """
    _same_shape(sr, hr)
    sr, hr = _cropped(sr, crop), _cropped(hr, crop)
    if edges == "valid" and min(sr.shape[:2]) < SSIM_WINDOW:
        raise ShapeMismatch(
            f"SSIM needs at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, and this image has "
            f"{sr.shape[0]}x{sr.shape[1]}."
        )
    planes = zip(
        np.moveaxis(np.atleast_3d(sr), 2, 0), np.moveaxis(np.atleast_3d(hr), 2, 0), strict=True
    )
    return float(np.mean([_plane_ssim(a, b, peak, edges) for a, b in planes]))


def spectral_angle(sr: Image, hr: Image) -> float:
    """Spectral angle mapper (SAM): mean angle between spectra in degrees, lower is better.

    From 0 to 180. A pixel that is zero in both images counts as 0, in one of them as 90.
    Source: Kruse et al. 1993; the angle by Kahan's formula, exact where arccos loses half of the
    digits.

    sr, hr: (H, W, C).
    Raises ShapeMismatch: the shapes differ.
    """
    _same_shape(sr, hr)
    a, b = sr.astype(np.float64), hr.astype(np.float64)
    length_a = np.linalg.norm(a, axis=-1, keepdims=True)
    length_b = np.linalg.norm(b, axis=-1, keepdims=True)
    a, b = a * length_b, b * length_a
    apart, together = np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)
    angle = 2 * np.arctan2(apart, together)[..., None]
    angle = np.where((length_a == 0) ^ (length_b == 0), np.pi / 2, angle)
    return float(np.degrees(angle.mean()))


def ergas(sr: Image, hr: Image, scale: int) -> float:
    """ERGAS, relative global error: 0 for equal images, inf if a band of hr has mean 0.

    Source: Wald 2000, 100 / scale sqrt(mean over bands of (RMSE / mean of hr)^2).

    sr, hr: (H, W, C), in any unit.  scale: How many times larger hr is than lr.
    Raises ShapeMismatch: the shapes differ.
    """
    _same_shape(sr, hr)
    truth = hr.astype(np.float64)
    squared = np.square(sr.astype(np.float64) - truth).mean((0, 1))
    means = np.square(truth.mean((0, 1)))
    with np.errstate(divide="ignore"):
        relative = np.divide(squared, means, out=np.zeros_like(squared), where=squared > 0)
    return 100 / scale * float(np.sqrt(relative.mean()))


def peak_of(image: Image) -> float:
    """The default peak of PSNR: the maximum of an integer type, the span of a float image."""
    if np.issubdtype(image.dtype, np.integer):
        return float(np.iinfo(image.dtype.name).max)
    return float(np.ptp(image)) or 1.0


def in_levels(sr: Image, hr: Image) -> Plane:
    """The values of sr on the scale of hr, as float64, neither rounded nor clipped.

    A float sr with an integer hr is unit: [0, 1] is the range of the type. Otherwise both have the
    same scale.
    """
    if np.issubdtype(sr.dtype, np.floating) and np.issubdtype(hr.dtype, np.integer):
        return sr.astype(np.float64) * peak_of(hr)
    return sr.astype(np.float64)


def score(sr: Image, pair: Pair, metrics: Sequence[Metric]) -> dict[str, float]:
    """Compute metrics of a result.

    Metrics with the same measure are computed once.

    sr: (s h, s w, C): unit floats, not clipped, or values in the type of hr.
    Returns the values by the names of the metrics. Raises ShapeMismatch: sr does not fit the pair
    or is too small; UsageError: a metric is not defined for this number of bands or type.
    """
    values: dict[Callable[[Image, Pair], float], float] = {}
    for metric in metrics:
        as_defined = pair.hr.shape[2] == metric.bands and pair.hr.dtype == np.uint8
        if metric.bands is not None and not as_defined:
            raise UsageError(
                f"{pair.name} has {pair.hr.shape[2]} bands of {pair.hr.dtype}, and {metric.rule} "
                f"is defined for {metric.bands} of uint8; take the rule bands."
            )
        if metric.measure not in values:
            try:
                values[metric.measure] = metric.measure(sr, pair)
            except ShapeMismatch as fault:
                raise ShapeMismatch(f"{pair.name}: {fault}") from fault
    return {metric.name: values[metric.measure] for metric in metrics}


def average(values: Mapping[str, float], mean: Literal["images", "classes"]) -> float:
    """The mean over images, or over the means of their class folders; inf if a value is inf."""
    if mean == "images":
        return float(np.mean(list(values.values())))
    return float(np.mean(list(class_means(values).values())))


def class_means(values: Mapping[str, float]) -> dict[str, float]:
    """The mean of each class folder by its sorted name; "" for images without a class."""
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(name.rpartition("/")[0], []).append(value)
    return {group: float(np.mean(groups[group])) for group in sorted(groups)}


def metrics_of(rules: Sequence[str], peak: float | None = None) -> list[Metric]:
    """The metrics of the named rules.

    rules: Names of rules or of single metrics.
    peak: For PSNR and SSIM of the rules bands and consistency, in the values of the images, instead
      of the type's largest value.
    Raises UsageError: a name is unknown, or no metric takes a peak.
    """
    chosen = []
    for rule in rules:
        found = [metric for metric in METRICS.values() if rule in (metric.rule, metric.name)]
        if not found:
            raise UsageError(f"There is no rule {rule}; choose among {', '.join(rule_names())}.")
        chosen += [metric for metric in found if metric not in chosen]
    if peak is None:
        return chosen
    if not 0 < peak < math.inf:
        raise UsageError(f"The peak is {peak:g}; give a number above 0.")
    relative = [_relative_to(metric, peak) for metric in chosen]
    if relative == chosen:
        takers = " and ".join(dict.fromkeys(METRICS[name].rule for name in OF_PEAK))
        raise UsageError(f"A peak or a range is for the rules {takers}; the others are for 8 bit.")
    return relative


def _relative_to(metric: Metric, peak: float) -> Metric:
    """The metric with another peak, if it has one that depends on the image."""
    if (measure := OF_PEAK.get(metric.name)) is None:
        return metric
    how = f"{metric.how}; here relative to {peak:g}"
    return replace(metric, how=how, measure=partial(measure, peak=peak))


def rule_names() -> tuple[str, ...]:
    """The names of the rules in METRICS."""
    return tuple(dict.fromkeys(metric.rule for metric in METRICS.values()))


def register_metric(metric: Metric) -> Metric:
    """Add a metric, which `rules` of an evaluation can then name. Raises UsageError."""
    rule, dot, measure = metric.name.partition(".")
    if not (rule and dot and measure) or any(character.isspace() for character in metric.name):
        raise UsageError(
            f"A metric is named {metric.name!r:.60}; name it as 'rule.measure', without spaces."
        )
    if metric.name in METRICS:
        raise UsageError(f"A metric {metric.name} already exists; take another name.")
    METRICS[metric.name] = metric
    return metric


def _published_psnr(sr: Image, pair: Pair) -> float:
    value = psnr(np.clip(in_levels(sr, pair.hr), 0, 255), pair.hr)
    return value if np.isfinite(value) else EQUAL_IMAGES_PUBLISHED


def _published_ssim(sr: Image, pair: Pair) -> float:
    levels, truth = in_levels(sr, pair.hr), pair.hr.astype(np.float64)
    return ssim(levels / 255, truth / 255, peak=1.0, edges="zero")


def _ttst_planes(sr: Image, pair: Pair) -> tuple[Plane, Plane]:
    rows, columns = (length // TTST_MULTIPLE * TTST_MULTIPLE for length in pair.hr.shape[:2])
    truncated = np.floor(np.clip(in_levels(sr, pair.hr), 0, 255))
    return luma(truncated)[:rows, :columns], luma(pair.hr)[:rows, :columns]


def _ttst_psnr(sr: Image, pair: Pair) -> float:
    return psnr(*_ttst_planes(sr, pair))


def _ttst_ssim(sr: Image, pair: Pair) -> float:
    return ssim(*_ttst_planes(sr, pair))


def _rounded(sr: Image, hr: Image) -> Plane:
    return np.floor(np.clip(in_levels(sr, hr), 0, 255) + 0.5)  # half up, as for LR


def _haunet_psnr(sr: Image, pair: Pair) -> float:
    bands = zip(np.moveaxis(_rounded(sr, pair.hr), 2, 0), np.moveaxis(pair.hr, 2, 0), strict=True)
    return float(np.mean([psnr(a, b, crop=pair.scale) for a, b in bands]))


def _esr_psnr(sr: Image, pair: Pair) -> float:
    return psnr(_rounded(sr, pair.hr), pair.hr, crop=pair.scale)


def _esr_ssim(sr: Image, pair: Pair) -> float:
    return ssim(_rounded(sr, pair.hr), pair.hr, crop=pair.scale)


def _esr_y_psnr(sr: Image, pair: Pair) -> float:
    return psnr(luma(_rounded(sr, pair.hr)), luma(pair.hr), crop=pair.scale)


def _esr_y_ssim(sr: Image, pair: Pair) -> float:
    return ssim(luma(_rounded(sr, pair.hr)), luma(pair.hr), crop=pair.scale)


def _bands_psnr(sr: Image, pair: Pair, peak: float | None = None) -> float:
    return psnr(in_levels(sr, pair.hr), pair.hr, peak=peak or peak_of(pair.hr))


def _bands_ssim(sr: Image, pair: Pair, peak: float | None = None) -> float:
    return ssim(in_levels(sr, pair.hr), pair.hr, peak=peak or peak_of(pair.hr))


def _bands_sam(sr: Image, pair: Pair) -> float:
    return spectral_angle(in_levels(sr, pair.hr), pair.hr)


def _bands_ergas(sr: Image, pair: Pair) -> float:
    return ergas(in_levels(sr, pair.hr), pair.hr, pair.scale)


def _perceptual_lpips(sr: Image, pair: Pair) -> float:
    return perceptual.lpips(_rounded(sr, pair.hr), pair.hr)


def _perceptual_dists(sr: Image, pair: Pair) -> float:
    return perceptual.dists(_rounded(sr, pair.hr), pair.hr)


def _consistency_psnr(sr: Image, pair: Pair, peak: float | None = None) -> float:
    reduced = imresize(in_levels(sr, pair.hr), 1 / pair.scale)
    return psnr(reduced, pair.lr, peak=peak or peak_of(pair.hr))


_PUBLISHED_PSNR = "RGB jointly, border kept; SR clipped to 0..255, not rounded; 100 if equal"
_PUBLISHED_SSIM = "RGB, border kept, zeros outside; SR neither clipped nor rounded"
_TTST = "Y of 8-bit images, SR truncated to integers; cropped to a multiple of 4, border kept"
_HAUNET = "SR rounded to 8 bit; border of s pixels cropped; mean over the channels"
_ESR_RGB = (
    "SR rounded to 8 bit; border of s pixels cropped; PSNR of RGB jointly, SSIM as mean over the "
    "channels"
)
_ESR_Y = "Y, not rounded, of SR rounded to 8 bit; border of s pixels cropped"
_BANDS = (
    "all bands, border kept, SR not rounded; relative to the type's largest value (floats: to the "
    "span of GT)"
)
_SAM = "mean angle between the spectra of a pixel"
_ERGAS = "100/s times the relative error of the bands (Wald)"
_LPIPS = "LPIPS 0.1 in the features of AlexNet; SR rounded to 8 bit, border kept; 0 if equal"
_DISTS = "DISTS in the features of VGG16; SR rounded to 8 bit, border kept; 0 if equal"
_CONSISTENCY = (
    "SR, not rounded, downsampled with MATLAB's bicubic and compared with LR; does not measure "
    "detail"
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("published.psnr", "dB", True, "classes", _PUBLISHED_PSNR, _published_psnr, 3),
        Metric("published.ssim", "", True, "classes", _PUBLISHED_SSIM, _published_ssim, 3),
        Metric("ttst-y.psnr", "dB", True, "classes", _TTST, _ttst_psnr, 3),
        Metric("ttst-y.ssim", "", True, "classes", _TTST, _ttst_ssim, 3),
        Metric("haunet-rgb.psnr", "dB", True, "images", _HAUNET, _haunet_psnr, 3),
        Metric("haunet-rgb.ssim", "", True, "images", _HAUNET, _esr_ssim, 3),
        Metric("esr-rgb.psnr", "dB", True, "images", _ESR_RGB, _esr_psnr, 3),
        Metric("esr-rgb.ssim", "", True, "images", _ESR_RGB, _esr_ssim, 3),
        Metric("esr-y.psnr", "dB", True, "images", _ESR_Y, _esr_y_psnr, 3),
        Metric("esr-y.ssim", "", True, "images", _ESR_Y, _esr_y_ssim, 3),
        Metric("bands.psnr", "dB", True, "images", _BANDS, _bands_psnr),
        Metric("bands.ssim", "", True, "images", _BANDS, _bands_ssim),
        Metric("bands.sam", "degrees", False, "images", _SAM, _bands_sam),
        Metric("bands.ergas", "", False, "images", _ERGAS, _bands_ergas),
        Metric("perceptual.lpips", "", False, "images", _LPIPS, _perceptual_lpips, 3),
        Metric("perceptual.dists", "", False, "images", _DISTS, _perceptual_dists, 3),
        Metric("consistency.psnr", "dB", True, "images", _CONSISTENCY, _consistency_psnr),
    )
}
# measures whose peak depends on the images unless one is given
OF_PEAK: dict[str, Callable[..., float]] = {
    "bands.psnr": _bands_psnr,
    "bands.ssim": _bands_ssim,
    "consistency.psnr": _consistency_psnr,
}


def _same_shape(sr: Image, hr: Image) -> None:
    if sr.shape != hr.shape or sr.ndim not in (2, 3):
        raise ShapeMismatch(
            f"SR is {sr.shape} and GT {hr.shape}; both must be the same (H, W) or (H, W, C)."
        )


def _cropped(image: Image, crop: int) -> Image:
    if 2 * crop >= min(image.shape[:2]):
        raise ShapeMismatch(
            f"Nothing is left of {image.shape[0]}x{image.shape[1]} pixels after cropping {crop} on "
            "each side."
        )
    return image[crop : image.shape[0] - crop, crop : image.shape[1] - crop]


def _plane_ssim(a: Image, b: Image, peak: float, edges: str) -> float:
    x, y = (
        np.pad(plane.astype(np.float64), SSIM_WINDOW // 2 if edges == "zero" else 0)
        for plane in (a, b)
    )
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_x, mean_y, product = _blurred(x), _blurred(y), _blurred(x * y)
    # only the sum of the two variances is needed, which saves one convolution
    squares = _blurred(x * x + y * y)
    mean_product = mean_x * mean_y
    mean_squares = mean_x * mean_x + mean_y * mean_y
    numerator = (2 * mean_product + c1) * (2 * (product - mean_product) + c2)
    return float((numerator / ((mean_squares + c1) * (squares - mean_squares + c2))).mean())


def _blurred(plane: Plane) -> Plane:
    """SSIM's Gaussian over a plane (H, W), only windows inside: (H - 10, W - 10)."""
    return _blurred_rows(_blurred_rows(plane).T).T


def _blurred_rows(plane: Plane) -> Plane:
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    rows, reach = plane.shape[0] - SSIM_WINDOW + 1, SSIM_WINDOW // 2
    total: Plane = weights[reach] * plane[reach : reach + rows]
    for tap in range(reach):  # the kernel is symmetric: two rows share a weight
        mirrored = SSIM_WINDOW - 1 - tap
        both = plane[tap : tap + rows] + plane[mirrored : mirrored + rows]
        both *= weights[tap]
        total += both
    return total
