"""PIL images to planes (bands, h, w), and the result back to an image of the same mode.

Pillow is only imported if the caller has an image of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import ShapeMismatch, UsageError

MODES = ("L", "RGB", "LA", "RGBA", "I;16", "F")  # upscaled as they are
# modes without colour values -> the mode that shows the same
SHOWN_AS = {"P": "RGB", "PA": "RGBA", "1": "L"}


def is_picture(image: object) -> bool:
    """Whether it is a PIL.Image.Image, found without importing Pillow."""
    return any(
        kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(image).__mro__
    )


def in_upscalable_mode(picture: Any) -> Any:
    """The image in a mode of MODES; palettes and bits are converted.

    Raises UsageError, ShapeMismatch.
    """
    if 0 in picture.size:
        raise ShapeMismatch(
            f"An image of {picture.width} x {picture.height} pixels cannot be upscaled."
        )
    mode = SHOWN_AS.get(picture.mode, picture.mode)
    if mode == "RGB" and "transparency" in picture.info:
        mode = "RGBA"
    if mode not in MODES:
        raise UsageError(
            f"An image of mode {picture.mode} cannot be upscaled; supported modes: "
            f"{', '.join((*MODES, *SHOWN_AS))}. Convert it with image.convert('RGB')."
        )
    return picture if mode == picture.mode else picture.convert(mode)


def planes_of_picture(picture: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The colours, (bands, h, w), and the alpha, (h, w), or None, of an image in one of MODES."""
    numbers = np.asarray(picture)
    planes = numbers[None] if numbers.ndim == 2 else np.moveaxis(numbers, 2, 0)
    return (planes[:-1], planes[-1]) if picture.mode.endswith("A") else (planes, None)


def picture_like(picture: Any, planes: NDArray[Any], alpha: NDArray[Any] | None, scale: int) -> Any:
    """planes: (bands, scale h, scale w) -> an image with the mode and info of `picture`.

    alpha: (h, w), resampled by nearest neighbour.
    """
    from PIL import Image

    bands = list(planes)
    if alpha is not None:
        bands.append(alpha.repeat(scale, axis=0).repeat(scale, axis=1))
    result = Image.fromarray(
        np.ascontiguousarray(bands[0] if len(bands) == 1 else np.stack(bands, axis=-1))
    )
    result.info = {name: value for name, value in picture.info.items() if name != "transparency"}
    return result
