"""Pictures of any size and mode, made into what a feature takes."""

from __future__ import annotations

from typing import Any

from mlopt.runtime.features.images import ImageFeature


def fitted_picture(picture: Any, feature: ImageFeature) -> Any:
    """Return a ``PIL.Image`` upright, in 8-bit colours or grey, and of a size that a feature takes.

    It is turned as its EXIF data say, and loses its transparency. A picture of a size that the
    feature takes keeps it. Another one is scaled with its aspect kept, bilinear and antialiased, to
    the least size that covers the default one, and cut to that in the middle. Pictures of more than
    8 bits per channel keep their mode.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        # PIL does not scale the variants of integers
        upright = upright.convert("F") if feature.space == "grayscale_float16" else upright
    elif upright.mode != "F":
        upright = upright.convert("RGB" if feature.channels == 3 else "L")
    if feature.takes(*upright.size) or upright.mode.startswith("I"):
        return upright
    size = feature.width, feature.height
    return ImageOps.fit(upright, size, method=Image.Resampling.BILINEAR)
