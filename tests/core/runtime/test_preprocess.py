"""Pixels: as Hugging Face's own processor and as mini's training make them; every non-image is one clear line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toprl_export.errors import UserError
from toprl_export.fields import read_fields, to_json
from toprl_export.runtime.preprocess import ImageProcessor

MINI = ImageProcessor((192, 192), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CLIP = ImageProcessor(
    (64, 64),
    resize="shortest-edge",
    crop=(56, 56),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that resampling is not noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (90, 130), (131, 77), (40, 300)])
def test_agrees_with_hugging_face(height: int, width: int):
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        image_mean=list(CLIP.mean),
        image_std=list(CLIP.std),
    )
    image = picture(height, width)
    expected = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    assert CLIP([image]) == pytest.approx(np.asarray(expected), abs=2e-6)


def test_agrees_with_the_training_of_mini():
    image = np.random.default_rng(1).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    expected = (image.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    pixels = MINI([image, image])
    assert pixels.shape == (2, 3, 192, 192) and pixels.dtype == np.float32
    assert np.array_equal(pixels[1], expected)


def test_exact_ignores_the_aspect():
    assert ImageProcessor((24, 48))([picture(100, 30)]).shape == (1, 3, 24, 48)


def test_paths_pillow_images_and_arrays_are_the_same(tmp_path: Path):
    image = picture(20, 30)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    rows = MINI([path, str(path), Image.fromarray(image), image])
    assert (rows == rows[:1]).all()


def test_grey_transparent_and_rotated_pictures(tmp_path: Path):
    grey = np.full((4, 4), 100, dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (MINI([tmp_path / "grey.png"]) == MINI([np.full((4, 4, 3), 100, dtype=np.uint8)])).all()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (MINI([tmp_path / "clear.png"]) == MINI([np.full((4, 4, 3), (10, 20, 30), dtype=np.uint8)])).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees
    Image.fromarray(picture(10, 20)).save(tmp_path / "rotated.jpg", exif=exif)
    stored = np.asarray(Image.open(tmp_path / "rotated.jpg"))
    assert (MINI([tmp_path / "rotated.jpg"]) == MINI([np.rot90(stored, -1)])).all()
    assert (MINI([tmp_path / "rotated.jpg"]) != MINI([stored])).any()


def test_what_is_no_image_is_named(tmp_path: Path):
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(picture(200, 200)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    cases = [
        (tmp_path / "text.png", "is not an image that Pillow can read"),
        (tmp_path / "cut.png", "cannot be read"),
        (tmp_path / "gone.png", "does not exist"),
        (tmp_path, "cannot be read"),
    ]
    for path, expected in cases:
        with pytest.raises(UserError, match=expected) as caught:
            MINI([path])
        assert str(path) in str(caught.value)


def test_a_huge_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.fromarray(picture(50, 50)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="is too large"):
        MINI([tmp_path / "image.png"])


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_of_another_kind(array: np.ndarray):
    with pytest.raises(UserError, match="expected uint8"):
        MINI([array])


def test_no_image():
    with pytest.raises(UserError, match="no image was given"):
        MINI([])


@pytest.mark.parametrize("processor", [MINI, CLIP])
def test_round_trip(processor: ImageProcessor):
    assert read_fields(ImageProcessor, to_json(processor), "x") == processor


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resize": "pad"}, "resize 'pad'"),
        ({"resample": "magic"}, "'magic'"),
        ({"size": [0, 4]}, "at least 1"),
        ({"size": [4]}, "x lacks size[1]"),
        ({"std": [1, 0, 1]}, "above 0"),
        ({"mean": [1, 0, 1, 0]}, "mean is [1, 0, 1, 0], expected at most 3 items"),
        ({"mean": ["a", 0, 0]}, "mean[0] is 'a'"),
        ({"crop": [500, 4]}, "larger than the size"),
        ({"resize": "shortest-edge"}, "needs one length and a crop"),
    ],
)
def test_impossible_settings(changes: dict, expected: str):
    with pytest.raises(UserError) as caught:
        read_fields(ImageProcessor, {**to_json(MINI), **changes}, "x")
    assert expected in str(caught.value)
