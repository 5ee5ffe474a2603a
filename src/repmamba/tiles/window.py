"""Window: a rectangle of whole pixels, with the operations that a tile plan needs.

Unlike rasterio's Window, it has only ints, so there are no rounding rules, and plans need no raster
library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """Rows row to row + height and columns col to col + width, ends excluded, in pixels."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns as slices, for arrays whose last two axes are (rows, columns)."""
        return slice(self.row, self.bottom), slice(self.col, self.right)

    @property
    def bottom(self) -> int:
        """The row below the last one."""
        return self.row + self.height

    @property
    def right(self) -> int:
        """The column right of the last one."""
        return self.col + self.width

    @property
    def area(self) -> int:
        """How many pixels it contains."""
        return self.height * self.width

    @property
    def is_empty(self) -> bool:
        """Whether it contains no pixel."""
        return self.height <= 0 or self.width <= 0

    def grown(self, margin: int) -> Window:
        """The window with margin more pixels on each side."""
        return Window(
            self.row - margin, self.col - margin, self.height + 2 * margin, self.width + 2 * margin
        )

    def clipped(self, other: Window) -> Window:
        """The intersection of two windows on the same grid; its height or width is 0 if empty."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        return Window(row, col, max(0, bottom - row), max(0, right - col))

    def scaled(self, scale: int) -> Window:
        """The same ground on a grid refined scale times."""
        return Window(scale * self.row, scale * self.col, scale * self.height, scale * self.width)

    def seen_from(self, other: Window) -> Window:
        """The window relative to the first pixel of other: an index into an array of other."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)

    def contains(self, other: Window) -> bool:
        """Whether every pixel of other lies in this window."""
        return self.clipped(other) == other
