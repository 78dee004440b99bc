"""From an image to ``pixel_values``, with Pillow and NumPy alone: what serves a bundle needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from toprl_export.errors import UserError

ImageInput: TypeAlias = "Image.Image | Path | str | NDArray[np.uint8]"
"""An image: Pillow's, a file's path, or ``uint8 [h, w, 3]``."""

RESIZE_MODES = ("exact", "shortest-edge")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class ImageProcessor:
    """How a model takes its images: resize, centre crop, scale to 0..1, normalise per channel.

    >>> processor = ImageProcessor(size=(336, 336), resize="shortest-edge", crop=(336, 336))
    >>> pixels = processor([Image.new("RGB", (640, 480), "white")])
    >>> pixels.shape, pixels.dtype, float(pixels.max())
    ((1, 3, 336, 336), dtype('float32'), 1.0)

    Attributes:
        size: height and width to resize to; for "shortest-edge" both are that edge's length.
        resize: "exact" (to ``size`` whatever the aspect ratio) or "shortest-edge" (the aspect ratio stays).
        crop: height and width of the centre crop, or None.
        mean: subtracted per channel, in units of 0..1.
        std: divided by per channel.
        resample: a key of ``RESAMPLING``.
    """

    size: tuple[int, int]
    resize: str = "exact"
    crop: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if self.resize not in RESIZE_MODES or self.resample not in RESAMPLING:
            raise UserError(
                f"image processor: resize {self.resize!r} with {self.resample!r} is unknown, "
                f"expected one of {', '.join(RESIZE_MODES)} with one of {', '.join(RESAMPLING)}"
            )
        sizes = [self.size] if self.crop is None else [self.size, self.crop]
        if any(min(pair) < 1 for pair in sizes):
            raise UserError(f"image processor: sizes {sizes} must each be a height and a width of at least 1")
        if self.resize == "shortest-edge" and (self.crop is None or self.size[0] != self.size[1]):
            raise UserError("image processor: shortest-edge needs one length and a crop, or images differ in shape")
        if self.crop is not None and (self.crop[0] > self.size[0] or self.crop[1] > self.size[1]):
            raise UserError(f"image processor: the crop {self.crop} is larger than the size {self.size}")
        if min(self.std) <= 0:
            raise UserError(f"image processor: std {self.std} must be above 0")

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of ``pixel_values``."""
        return self.crop or self.size

    def __call__(self, images: Sequence[ImageInput]) -> NDArray[np.float32]:
        """Images to ``float32 [b, 3, h, w]``.

        Raises:
            UserError: there is none, or one of them is not an image.
        """
        if not images:
            raise UserError("no image was given: give at least one")
        return np.stack([self._one(image) for image in images])

    def _one(self, image: ImageInput) -> NDArray[np.float32]:
        picture = self._crop(self._resize(_to_pillow(image)))
        pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)  # [h, w, 3]
        normalised = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))  # [3, h, w]

    def _resize(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        if self.resize == "shortest-edge":
            # The longer edge is truncated, not rounded, as Hugging Face's processors do.
            short, long = sorted(picture.size)
            longer = int(width * long / short)
            width, height = (width, longer) if picture.width <= picture.height else (longer, height)
        if picture.size == (width, height):
            return picture
        return picture.resize((width, height), RESAMPLING[self.resample])

    def _crop(self, picture: Image.Image) -> Image.Image:
        if self.crop is None:
            return picture
        height, width = self.crop
        top, left = (picture.height - height) // 2, (picture.width - width) // 2
        return picture.crop((left, top, left + width, top + height))


def _to_pillow(image: ImageInput) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(
                f"an image array is {image.dtype} {list(image.shape)}, expected uint8 [height, width, 3]: convert it"
            )
        return Image.fromarray(image)
    return _open(Path(image))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image {path} does not exist: check the path") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image that Pillow can read: give a PNG, JPEG or WebP file") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"image {path} is too large ({error}): scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise for broken files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"image {path} cannot be read ({reason}): give a complete PNG, JPEG or WebP file") from error
