"""A picture is the same by every way that it can be given; every non-picture is one clear line."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from toprl_export.errors import UserError
from toprl_export.runtime import pictures
from toprl_export.runtime.pictures import open_picture


def colourful(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def every_way(content: bytes, path: Path) -> list[np.ndarray]:
    """One encoded picture by path (two types), Pillow image, bytes, file object and data URL."""
    path.write_bytes(content)
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    with path.open("rb") as file:
        ways = [path, str(path), Image.open(io.BytesIO(content)), content, bytearray(content), file, url]
        return [np.asarray(open_picture(way)) for way in ways]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_turns_a_photograph_upright(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(colourful()), "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    ways = every_way(content, tmp_path / "photo.png")
    assert all(np.array_equal(way, upright) for way in ways)
    assert np.array_equal(ways[0], colourful()) == (orientation == 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_is_its_rgb_form_by_every_way(tmp_path: Path, mode: str):
    if mode == "I;16":
        grey = np.random.default_rng(1).integers(0, 65536, (20, 30), dtype=np.uint16)
        picture, expected = Image.fromarray(grey), np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, 2)
    else:
        picture = Image.fromarray(colourful()).convert(mode)
        expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(np.asarray(open_picture(picture)), expected)
    if mode not in ("PA", "YCbCr"):  # no format keeps these
        content = encoded(picture, "TIFF")
        assert all(np.array_equal(way, expected) for way in every_way(content, tmp_path / "picture"))


def test_arrays_of_every_shape():
    grey = colourful()[..., 0]
    grey_rgb = np.repeat(grey[..., None], 3, 2)
    for array, expected in (
        (colourful(), colourful()),
        (grey, grey_rgb),
        (grey[..., None], grey_rgb),
        (np.dstack([colourful(), grey]), colourful()),
    ):
        assert np.array_equal(np.asarray(open_picture(array)), expected)


def test_sixteen_bits_keep_their_brightness():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(2, 0)
    shown = np.asarray(open_picture(Image.fromarray(ramp)))[0, :, 0]
    assert shown.tolist() == list(range(256))


@pytest.mark.parametrize("array", [np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, array: np.ndarray):
    content = encoded(Image.fromarray(array), "TIFF")
    with pytest.raises(UserError, match="whose white is unknown"):
        open_picture(content)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "an image is a NoneType"),
        (3.5, "an image is a float"),
        (b"", "is not a picture"),
        (b"hello", "is not a picture: give one of PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        (io.StringIO("text"), "cannot be read"),
        ("data:image/png,plain", "the data URL"),
        ("data:image/png;base64,%%%", "the data URL"),
        ("https://example.org/a.png", "is an address: download it"),
        ("nowhere.png", "image nowhere.png does not exist"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        (Path("/"), "is not a regular file"),
        (np.zeros((4, 4, 3), np.float32), "expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8"),
        (np.zeros((4,), np.uint8), "expected uint8"),
        (Image.new("RGB", (0, 5)), "0 x 5"),
    ],
    ids=lambda value: str(value)[:20].replace("\0", "0"),
)
def test_what_is_no_picture_is_named(source: Any, expected: str):
    with pytest.raises(UserError, match=expected) as caught:
        open_picture(source)
    assert "\n" not in str(caught.value)


def test_a_cut_file_a_pipe_and_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = encoded(Image.fromarray(colourful(200, 200)))
    for length in range(0, len(whole) - 20, 997):
        with pytest.raises(UserError):
            open_picture(whole[:length])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a regular file"):
        open_picture(tmp_path / "pipe")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1000)
    with pytest.raises(UserError, match="has more than 1,000 pixels"):
        open_picture(whole)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    shown = np.asarray(open_picture(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert (shown == (255, 0, 0)).all()


def test_a_long_strip_takes_no_memory(tmp_path: Path):
    Image.new("RGB", (30000, 2)).save(tmp_path / "wide.png")
    code = (
        "import sys\n"
        "from toprl_export.errors import UserError\n"
        "from toprl_export.runtime.pictures import open_picture\n"
        "from toprl_export.validation.costs import resident_peak\n"
        "try:\n    open_picture(sys.argv[1])\n"
        "except UserError as refusal:\n    print(refusal)\n"
        "print(resident_peak())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "wide.png")], capture_output=True, text=True)
    refusal, peak = done.stdout.splitlines()
    assert "30000 x 2, expected edges that differ 200 times at most" in refusal
    assert int(peak) < 2**29
    assert open_picture(Image.new("RGB", (400, 2))).size == (400, 2)
