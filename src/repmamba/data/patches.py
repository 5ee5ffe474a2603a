"""Training patches: which ones each step of a run uses, and how they are augmented.

Samples are drawn from a counter (seed, phase, epoch, position) and not from a random state, so that
a run resumes from an integer and the number of workers or processes does not change them. Only
numbers here; stock.py cuts the pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Phase:
    """From step (or epoch) `start` on: `batch` patches of `size` x `size` lr pixels per step."""

    start: int = 0
    size: int = 64
    batch: int = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One patch: the image, its first lr pixel, and its augmentation.

    Rows and columns are flipped first, then the patch is transposed.
    counter: what it was drawn from, besides the seed: (position, epoch, phase).
    """

    image: int
    row: int
    col: int
    flipped_rows: bool
    flipped_cols: bool
    transposed: bool
    counter: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Sampler:
    """The samples of every step of a run. Each epoch takes one patch per image, in random order."""

    seed: int  # of all random choices
    sizes: tuple[tuple[int, int], ...]  # lr height and width of each image
    phases: tuple[Phase, ...]  # in order of their start, which counts steps
    augment: tuple[str, ...] = ()  # any of "flips", "transpose", "rotations"
    keep_short: bool = False  # whether an epoch ends with a short batch, or fills it from the next
    by_area: bool = False  # draw images in proportion to their area: all pixels are equally likely

    def phase(self, step: int) -> int:
        """The phase of a step (from 0)."""
        return max(index for index, phase in enumerate(self.phases) if phase.start <= step)

    def steps_per_epoch(self, phase: int) -> int:
        """Steps to use every image; without keep_short, the last reaches into the next epoch."""
        return -(-len(self.sizes) // self.phases[phase].batch)

    def ends_epoch(self, step: int) -> bool:
        """Whether this step is the last one of an epoch of its phase."""
        phase = self.phase(step)
        return (step - self.phases[phase].start + 1) % self.steps_per_epoch(phase) == 0

    def count(self, step: int) -> int:
        """The number of samples of a step."""
        phase = self.phase(step)
        batch, count = self.phases[phase].batch, len(self.sizes)
        left = count % batch if self.keep_short and self.ends_epoch(step) else 0
        return left or batch

    def samples(self, step: int) -> list[Sample]:
        """The samples of a step (from 0), for all processes together."""
        phase = self.phase(step)
        batch = self.phases[phase].batch
        count = len(self.sizes)
        local = step - self.phases[phase].start
        if self.keep_short:
            epoch, turn = divmod(local, self.steps_per_epoch(phase))
            places = [
                (epoch, position)
                for position in range(turn * batch, min((turn + 1) * batch, count))
            ]
        else:
            places = [divmod(number, count) for number in range(local * batch, (local + 1) * batch)]
        counters = [(position, epoch, phase) for epoch, position in places]
        if self.by_area:
            ends = np.cumsum([height * width for height, width in self.sizes])
            return [self._sample(self._by_area(ends, counter), counter) for counter in counters]
        orders = {epoch: self._order(phase, epoch) for epoch in {epoch for epoch, _ in places}}
        return [self._sample(int(orders[counter[1]][counter[0]]), counter) for counter in counters]

    def _order(self, phase: int, epoch: int) -> NDArray[np.int64]:
        # No sample has the position -1, so the order is drawn independently.
        return counter_generator(self.seed, (-1, epoch, phase)).permutation(len(self.sizes))

    def _by_area(self, ends: NDArray[np.int64], counter: tuple[int, int, int]) -> int:
        pixel = counter_generator(self.seed, counter, purpose=2).integers(0, ends[-1])
        return int(np.searchsorted(ends, pixel, side="right"))

    def _sample(self, image: int, counter: tuple[int, int, int]) -> Sample:
        size = self.phases[counter[2]].size
        height, width = self.sizes[image]
        draw = counter_generator(self.seed, counter)
        row = int(draw.integers(0, max(height - size, 0), endpoint=True))
        col = int(draw.integers(0, max(width - size, 0), endpoint=True))
        bits = draw.integers(0, 2, size=5).astype(bool).tolist()
        rows, cols, transposed = False, False, False
        if "flips" in self.augment:
            rows, cols = bits[0], bits[1]
        if "transpose" in self.augment:
            transposed = bits[2]
        if "rotations" in self.augment and bits[3]:  # by 180 degrees
            rows, cols = not rows, not cols
        # by 90 degrees: if transposed already, rows are the other axis
        if "rotations" in self.augment and bits[4]:
            rows, cols = (not rows, cols) if transposed else (rows, not cols)
            transposed = not transposed
        return Sample(image, row, col, rows, cols, transposed, counter)


def counter_generator(
    seed: int, counter: tuple[int, int, int], purpose: int = 0
) -> np.random.Generator:
    """The random generator of a counter."""
    position, epoch, phase = counter
    # Philox counts in the first word; the others are ours. Positions start at -1, words at 0.
    words = np.array([0, position + 1, epoch, phase + 2**32 * purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=words))
