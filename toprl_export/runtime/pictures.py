"""Opening pictures: whatever a caller holds becomes an upright RGB picture, the same by every way."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from toprl_export.errors import UserError

ImageInput: TypeAlias = "Image.Image | Path | str | bytes | IO[bytes] | NDArray[np.uint8]"
"""A picture: Pillow's, a file's path, a ``data:`` URL, a file's bytes or an open file, or ``uint8 [h, w]``,
``[h, w, 1]`` (grey), ``[h, w, 3]`` (RGB) or ``[h, w, 4]`` (RGBA)."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened; Pillow knows more, some of which starts other programs. Of an animation the first frame is taken."""

MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
WIDEST_RATIO = 200
"""The longer edge over the shorter: a processor that scales the shorter edge would make a strip of any length from a
few bytes. (Qwen2-VL's processor has the same bound.)"""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_UNKNOWN_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}


def open_picture(source: ImageInput) -> Image.Image:
    """A picture as RGB, turned upright as its EXIF data says.

    Transparency is dropped, as Hugging Face's processors do; 16-bit grey is scaled to 8 bits.

    Raises:
        UserError: it is no picture, not of an intended format, damaged, has pixels of an unknown range, or is too large
            or too long and narrow.
    """
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source), "an image array")
    if isinstance(source, Image.Image):
        return _rgb(source, "a Pillow image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _opened(io.BytesIO(source), "an image given as bytes")
    if isinstance(source, str) and source.startswith("data:"):
        return _opened(io.BytesIO(_data_of(source)), "an image given as a data URL")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise UserError(f"image {source[:100]} is an address: download it and give the file")
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    if hasattr(source, "read"):
        return _opened(source, "an image given as a file object")
    raise UserError(
        f"an image is a {type(source).__name__}, expected a path, a data URL, bytes, an open file, a Pillow image or a "
        "uint8 array"
    )


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    coloured = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (grey or coloured) or 0 in array.shape:
        raise UserError(
            f"an image array is {array.dtype} {list(array.shape)}, expected uint8 [height, width, 3] (4 for RGBA) or "
            "[height, width] (grey): convert it"
        )
    return Image.fromarray(array.reshape(array.shape[:2]) if grey else array)


def _data_of(url: str) -> bytes:
    head, comma, body = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UserError(f"the data URL {url[:40]!r}… cannot be read: expected data:image/png;base64,…") from error


def _from_path(path: Path) -> Image.Image:
    name = f"image {path}"
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            raise UserError(f"{name} is not a regular file: give a picture's file")
        with path.open("rb") as file:
            return _opened(file, name)
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist: check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"{name} cannot be read ({_reason(error)}): check the path") from error


def _opened(file: IO[bytes], name: str) -> Image.Image:
    try:
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture: give one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise UserError(f"{name} cannot be read ({_reason(error)}): give a whole picture") from error
    return _rgb(picture, name)


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    _check_size(picture, name)
    if picture.mode in _UNKNOWN_RANGE:
        raise UserError(
            f"{name} has {_UNKNOWN_RANGE[picture.mode]} for pixels, whose white is unknown: save it with 8 or 16 bits"
        )
    try:
        upright = ImageOps.exif_transpose(picture)
        return _eight_bits(upright).convert("RGB")
    # What Pillow's decoders raise for broken files; the rest comes from broken EXIF data.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise UserError(f"{name} cannot be read ({_reason(error)}): give a whole picture") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Sixteen bits to eight; Pillow's own conversion would cut everything above 255 off."""
    if picture.mode not in _SIXTEEN_BITS:
        return picture
    return Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise _too_large(name)
    short, long = sorted(picture.size)
    if not short or long > WIDEST_RATIO * short:
        raise UserError(
            f"{name} is {width} x {height}, expected edges that differ {WIDEST_RATIO} times at most: crop or scale it"
        )


def _too_large(name: str) -> UserError:
    return UserError(f"{name} has more than {MOST_PIXELS:,} pixels: scale it down")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
