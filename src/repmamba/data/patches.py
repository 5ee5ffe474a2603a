"""Patches to learn from: which ones each step of a run sees, and how they are laid.

Drawn from a counter (seed, phase, epoch, position), never from a random state, so that resuming is
an integer and neither the number of workers nor that of processes changes a sample. Only numbers
here; stock.py cuts the pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Phase:
    """From step (or epoch) `start` on: patches of `size` lr pixels on a side, `batch` of them in a
    step.
    """

    start: int = 0
    size: int = 64
    batch: int = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One patch: of which image, from which lr pixel on, and how it is laid.

    It is cut, then its rows and columns are reversed where flipped, then it is transposed.
    counter: what it was drawn from, after the seed: (position, epoch, phase).
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
    """The samples of every step of a run. In an epoch each image gives one patch, in an order drawn
    for that epoch.

    sizes: lr height and width of each image.  phases: in order of their start, which counts steps.
    by_area: each patch's image is drawn by its area instead, so that every pixel is seen about
    equally often. augment: of "flips", "transpose", "rotations". keep_short: an epoch ends with
    what is left of it; otherwise a batch goes on into the next epoch.
    """

    seed: int
    sizes: tuple[tuple[int, int], ...]
    phases: tuple[Phase, ...]
    augment: tuple[str, ...] = ()
    keep_short: bool = False
    by_area: bool = False

    def phase(self, step: int) -> int:
        """Which phase a step (from 0) belongs to."""
        return max(index for index, phase in enumerate(self.phases) if phase.start <= step)

    def steps_per_epoch(self, phase: int) -> int:
        """Steps in which every image is seen; without keep_short, the last of them goes on into the
        next epoch.
        """
        return -(-len(self.sizes) // self.phases[phase].batch)

    def ends_epoch(self, step: int) -> bool:
        """Whether this step is the last of an epoch of its phase."""
        phase = self.phase(step)
        return (step - self.phases[phase].start + 1) % self.steps_per_epoch(phase) == 0

    def count(self, step: int) -> int:
        """How many samples a step has."""
        phase = self.phase(step)
        batch, count = self.phases[phase].batch, len(self.sizes)
        left = count % batch if self.keep_short and self.ends_epoch(step) else 0
        return left or batch

    def samples(self, step: int) -> list[Sample]:
        """The samples of a step, counted from 0, of all processes together."""
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
        # No sample has the position -1, so the order has numbers of its own.
        return generator(self.seed, (-1, epoch, phase)).permutation(len(self.sizes))

    def _by_area(self, ends: NDArray[np.int64], counter: tuple[int, int, int]) -> int:
        pixel = generator(self.seed, counter, purpose=2).integers(0, ends[-1])
        return int(np.searchsorted(ends, pixel, side="right"))

    def _sample(self, image: int, counter: tuple[int, int, int]) -> Sample:
        size = self.phases[counter[2]].size
        height, width = self.sizes[image]
        draw = generator(self.seed, counter)
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
        # by 90: of what is transposed already, rows are the other axis
        if "rotations" in self.augment and bits[4]:
            rows, cols = (not rows, cols) if transposed else (rows, not cols)
            transposed = not transposed
        return Sample(image, row, col, rows, cols, transposed, counter)


def generator(seed: int, counter: tuple[int, int, int], purpose: int = 0) -> np.random.Generator:
    """The random numbers that belong to a counter and to nothing else."""
    position, epoch, phase = counter
    # The generator counts up in the first word; the others are the counter's own. Positions begin
    # at -1, words at 0.
    words = np.array([0, position + 1, epoch, phase + 2**32 * purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=seed, counter=words))
