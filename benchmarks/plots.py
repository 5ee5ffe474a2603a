"""The plots of docs/explanation/speed.md and evaluation.md; without results, the existing plot is
kept.
"""

import csv
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

Results = dict[str, dict[str, Any]]

# light networks at x4: thousands of parameters, PSNR in dB and SSIM by `esr-rgb`, and their time in
# our unit where it was measured. Ours is the first, its time a result: the one row to change with
# the packaged weights.
ACCURACY = Path(__file__).parent / "accuracy_x4.csv"

# the running mean of the weights in the course of training: PSNR in dB by `esr-rgb`, as `repmamba
# evaluate` gives it; the cards have the course
LEARNING = Path(__file__).parent / "learning.csv"

OURS, OTHERS = "#b3261e", "#3f5f7f"

# test sets: name, colour, PSNR of bicubic and of the best light network known at x2, x3 and x4
SETS = {
    "rsscn7": ("RSSCN7", "#3f5f7f", {2: (30.52, 32.63), 3: (28.05, 29.63), 4: (26.73, 28.08)}),
    "ucmerced": ("UC Merced", "#b3261e", {2: (30.17, 34.10), 3: (26.83, 29.83), 4: (25.00, 27.50)}),
    "epfl_road": (
        "EPFL roads",
        "#5b7f3f",
        {2: (23.20, 26.91), 3: (21.11, 23.50), 4: (20.12, 22.00)},
    ),
}


def draw(results: Results, folder: Path) -> None:
    """Write each plot of a result as speed-NAME.png, and learning.png."""
    learning(folder)
    for name, (needed, plot) in PLOTS.items():
        if all(question in results for question in needed):
            figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
            plot(axes, *(results[question] for question in needed))
            axes.grid(alpha=0.3, which="both", linewidth=0.5)
            axes.spines[["top", "right"]].set_visible(False)
            figure.savefig(folder / f"speed-{name}.png", dpi=110)
            plt.close(figure)


def learning(folder: Path) -> None:
    """Write learning.png: gain over bicubic on each test set against steps, a panel a scale."""
    with LEARNING.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scales = sorted({int(row["scale"]) for row in rows}, reverse=True)
    figure, panels = plt.subplots(1, len(scales), figsize=(10, 4.2), layout="constrained")
    for axes, scale in zip(panels, scales, strict=True):
        of_scale = [row for row in rows if int(row["scale"]) == scale]
        steps = [int(row["steps"]) / 1000 for row in of_scale]
        for key, (name, color, known) in SETS.items():
            bicubic, best = known[scale]
            gains = [float(row[key]) - bicubic for row in of_scale]
            axes.plot(steps, gains, "o-", color=color, markersize=4, label=name)
            axes.axhline(best - bicubic, color=color, linestyle=":", linewidth=1)
        axes.set(title=f"x{scale}", xlabel="thousand steps")
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel="gain over bicubic, esr-rgb, dB")
    panels[0].legend(frameon=False, loc="lower right")
    figure.savefig(folder / "learning.png", dpi=110)
    plt.close(figure)


def area(axes: Axes, result: dict[str, Any]) -> None:
    """Time against area, beside a time that is proportional to the area."""
    rows = [row for row in result["times"] if row["what"][0].isdigit()]
    pixels = [int(row["what"].split(" x ")[0]) ** 2 for row in rows]
    times = [row["ms"] for row in rows]
    axes.loglog(pixels, times, "o-", color=OURS, label="a call")
    straight = [times[-1] * each / pixels[-1] for each in pixels]
    axes.loglog(pixels, straight, "--", color=OTHERS, label="as the area, from the largest")
    for row, x, y in zip(rows, pixels, times, strict=True):
        axes.annotate(row["what"], (x, y), xytext=(6, -12), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="pixels of the input",
        ylabel="milliseconds",
        title=f"Time against area, x4, {_machine(result)}",
    )
    axes.legend(frameon=False)


def threads(axes: Axes, result: dict[str, Any]) -> None:
    """Images a second, against what as many times one thread would be."""
    rows = [row for row in result["times"] if "thread" in row["what"]]
    cores = result["machine"]["cores"]
    images = [1e3 / row["ms"] * (cores if "each" in row["what"] else 1) for row in rows]
    axes.barh(
        [row["what"] for row in rows], images, color=[OTHERS] + [OURS] * (len(rows) - 1), height=0.6
    )
    ideal = images[0] * cores
    axes.axvline(ideal, linestyle="--", color=OTHERS)
    beside = {
        "xytext": (-6, 0),
        "textcoords": "offset points",
        "rotation": 90,
        "ha": "right",
        "va": "center",
    }
    axes.annotate(f"{cores} times one thread", (ideal, 0), fontsize=8, **beside)
    axes.invert_yaxis()
    axes.set(
        xlabel="images of 128 x 128 a second", title=f"Images a second, x4, {_processor(result)}"
    )


def roofline(axes: Axes, result: dict[str, Any]) -> None:
    """Each kind of pass under what the machine can do: bytes at the rate of a copy, operations at
    that of Conv2d.
    """
    rows, limits = result["passes"], result["limits"]
    top, slope = limits["gflop_per_second"], limits["gb_per_second"]
    intensities = [row["gflop"] * 1e3 / row["mb"] for row in rows]
    line = sorted({min(intensities) / 2, top / slope, max(intensities) * 2})
    axes.loglog(
        line,
        [min(top, slope * each) for each in line],
        color=OTHERS,
        label="a copy, Conv2d(64, 64, 3)",
    )
    rates, sizes = [row["gflop_per_second"] for row in rows], [1500 * row["share"] for row in rows]
    axes.scatter(intensities, rates, sizes, color=OURS, alpha=0.6)
    axes.margins(0.1)
    axes.set(
        xlabel="operations for each byte that is read or written",
        ylabel="GFLOP/s",
        title=f"What each kind of pass reaches, {_machine(result)}",
    )
    axes.legend(frameon=False, loc="lower right")
    _label(axes, [f"{row['what']}, {row['share']:.0%}" for row in rows], intensities, rates)


def accuracy(axes: Axes, result: dict[str, Any]) -> None:
    """PSNR on UC Merced's test pictures against the time of a call."""
    rows = [row for row in networks(result) if row["units"]]
    times, values = ([float(row[name]) for row in rows] for name in ("units", "ucmerced"))
    axes.scatter(times[1:], values[1:], 36, color=OTHERS)
    axes.scatter(times[:1], values[:1], 160, color=OURS, marker="*")
    axes.margins(x=0.12)
    axes.set(
        xscale="log",
        xlabel="time of a 128 x 128 input, in units of Rep-Mamba's own arithmetic",
        ylabel="PSNR on UC Merced x4, esr-rgb, dB",
        title="Accuracy against time",
    )
    _label(axes, [row["network"] for row in rows], times, values)


def networks(result: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of ACCURACY, ours first, with the time that a result of
    how_far_from_its_own_arithmetic has.
    """
    with ACCURACY.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[0]["units"] = next(
        f"{row['units']:.2f}" for row in result["times"] if row["what"] == "fused, compiled passes"
    )
    return rows


PLACES: tuple[dict[str, Any], ...] = (  # of a name, around its point
    {"xytext": (10, 0), "ha": "left", "va": "center"},
    {"xytext": (-10, 0), "ha": "right", "va": "center"},
    {"xytext": (0, 10), "ha": "center", "va": "bottom"},
    {"xytext": (0, -10), "ha": "center", "va": "top"},
    {"xytext": (7, 7), "ha": "left", "va": "bottom"},
    {"xytext": (7, -7), "ha": "left", "va": "top"},
    {"xytext": (-7, -7), "ha": "right", "va": "top"},
)

PLOTS = {
    "area": (("how_does_it_grow_with_area",), area),
    "threads": (("how_does_it_grow_with_threads",), threads),
    "roofline": (("where_does_the_time_go",), roofline),
    "accuracy": (("how_far_from_its_own_arithmetic",), accuracy),
}


def _label(axes: Axes, names: list[str], xs: list[float], ys: list[float]) -> None:
    """Names beside their points, each at the first place around it where it covers no point and no
    other name.

    The limits and scales of the axes are set before: where a name lies depends on them.
    """
    axes.figure.draw_without_rendering()
    points = axes.transData.transform(list(zip(xs, ys, strict=True)))
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for name, x, y in sorted(zip(names, xs, ys, strict=True), key=lambda each: each[2]):
        for place in PLACES:
            text = axes.annotate(name, (x, y), textcoords="offset points", fontsize=8, **place)
            box = text.get_window_extent()
            if (
                axes.bbox.containsx(box.x0)
                and axes.bbox.containsx(box.x1)
                and not box.count_overlaps(taken)
            ):
                break
            if place is not PLACES[-1]:
                text.remove()
        taken.append(box)


def _processor(result: dict[str, Any]) -> str:
    return str(result["machine"]["processor"])


def _machine(result: dict[str, Any]) -> str:
    count = result["machine"]["threads"]
    return f"{count} thread{'s' * (count > 1)}, {_processor(result)}"
