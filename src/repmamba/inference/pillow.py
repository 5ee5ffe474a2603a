"""Pictures of Pillow in and out: their numbers as (bands, h, w), and the result as a picture of the
same mode.

Pillow is imported by whoever made the picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import ShapeMismatch, UsageError

MODES = ("L", "RGB", "LA", "RGBA", "I;16", "F")  # that can be enlarged as they are
# modes whose numbers are no colours: what they show
SHOWN_AS = {"P": "RGB", "PA": "RGBA", "1": "L"}


def is_picture(image: object) -> bool:
    """Whether it is a PIL.Image.Image, found without importing Pillow."""
    return any(
        kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(image).__mro__
    )


def in_upscalable_mode(picture: Any) -> Any:
    """The picture in a mode of MODES; palettes and bits as what they show. Raises UsageError,
    ShapeMismatch.
    """
    if 0 in picture.size:
        raise ShapeMismatch(
            f"A picture of {picture.width} x {picture.height} pixels has nothing to enlarge."
        )
    mode = SHOWN_AS.get(picture.mode, picture.mode)
    if mode == "RGB" and "transparency" in picture.info:
        mode = "RGBA"
    if mode not in MODES:
        raise UsageError(
            f"A picture of mode {picture.mode} cannot be enlarged; these can: "
            f"{', '.join((*MODES, *SHOWN_AS))}. "
            "Change it with picture.convert('RGB')."
        )
    return picture if mode == picture.mode else picture.convert(mode)


def planes_of_picture(picture: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The colours of a picture that was `shown`, (bands, h, w), and its alpha, (h, w), where it has
    one.
    """
    numbers = np.asarray(picture)
    planes = numbers[None] if numbers.ndim == 2 else np.moveaxis(numbers, 2, 0)
    return (planes[:-1], planes[-1]) if picture.mode.endswith("A") else (planes, None)


def picture_like(picture: Any, planes: NDArray[Any], alpha: NDArray[Any] | None, scale: int) -> Any:
    """planes: (bands, scale h, scale w) as a picture of the same mode and information; alpha, (h,
    w), by nearest.
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
