"""Pictures of kept tokens: patches stand where they belong, and the command draws them from agent and bundle."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from toprl_export.cli.main import main
from toprl_export.errors import UserError
from toprl_export.evaluation.kept_tokens import KeptTokens
from toprl_export.evaluation.overlay import OUTLINE, PANEL, dim_dropped, draw, outline_kept, patch_grid, png_bytes


def colourful(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_kept_patches_keep_their_colours_and_dropped_ones_lose_them():
    image = colourful(24, 24)
    shown = dim_dropped(image, np.array([1, 3, 8]), 9)
    for patch in range(9):
        row, column = divmod(patch, 3)
        area = (slice(row * 8, row * 8 + 8), slice(column * 8, column * 8 + 8))
        if patch in (1, 3, 8):
            assert (shown[area] == image[area]).all()
        else:
            assert (shown[area] == shown[area][..., :1]).all()  # grey
            assert shown[area].min() > 180  # and pale


def test_regions_of_kept_patches_are_outlined_even_where_all_is_white():
    panel = Image.new("RGB", (90, 60), "white")
    outline_kept(panel, np.array([0, 1, 5]), (2, 3))  # patches of 30 pixels: two side by side, one below right
    drawn = (np.asarray(panel) == OUTLINE).all(-1)
    assert drawn[0, :60].all() and drawn[:30, 0].all() and drawn[29, :60].all() and drawn[:30, 59].all()
    assert drawn[30:, 60].all() and drawn[59, 60:].all() and drawn[30:, 89].all() and drawn[30, 60:].all()
    assert not drawn[5:25, 25:35].any()  # no line between two kept neighbours
    assert not drawn[:30, 60:].any() and not drawn[30:, :60].any()  # dropped patches stay as they are


def test_wide_images_have_more_columns_than_rows():
    assert patch_grid(16, 48, 12) == (2, 6)
    shown = dim_dropped(colourful(16, 48), np.array([5]), 12)
    assert (shown[:8, 40:] == colourful(16, 48)[:8, 40:]).all()


@pytest.mark.parametrize("visual_tokens", [577, 10, 2])
def test_tokens_without_a_grid_are_refused(visual_tokens: int):
    with pytest.raises(UserError, match="no grid of square patches"):
        patch_grid(192, 192, visual_tokens)


def kept_tokens(**changes) -> KeptTokens:
    stages = (np.arange(6), np.arange(2))
    values = {"question": "what?", "answer": "that", "expected": "this"} | changes
    return KeptTokens(colourful(24, 24), 9, stages, ("decoder:0", "decoder:2"), **values)


def test_one_panel_for_the_image_and_each_stage():
    picture = draw(kept_tokens())
    assert picture.width > 3 * PANEL
    pixels = np.asarray(picture)
    # Beneath the first column of patches: all three rows in colour, two rows, then the first only.
    middles = [np.ptp(pixels[:, x].astype(int), axis=-1) for x in (30, 366, 702)]
    coloured = [int((column > 8).sum()) for column in middles]
    assert coloured[0] > coloured[1] > coloured[2] > PANEL / 5


def test_long_texts_are_wrapped():
    short, long = draw(kept_tokens()), draw(kept_tokens(question="why " * 120))
    assert long.width == short.width
    assert long.height > short.height + 60


def test_png(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(draw(kept_tokens(expected=None, answer=""))))
    assert Image.open(tmp_path / "a.png").format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "by --agent or by --bundle: give one of the two"),
        (["--agent", "a", "--bundle", "b"], "by --agent or by --bundle: give one of the two"),
        (["--agent", "a", "--image", "x.png"], "need each other"),
        (["--agent", "a", "--image", "x.png", "--prompt", "?", "--index", "2"], "both say what to ask"),
        (["--agent", "a", "--index", "-1"], "--index"),
        (["--agent", "nowhere"], "is no agent directory"),
        (["--bundle", "nowhere"], "expected a bundle"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments: list[str], message: str):
    assert main(["visualize", *arguments, "--output", str(tmp_path / "x.png")]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_picture_is_kept(tmp_path, capsys):
    (tmp_path / "x.png").write_text("mine")
    assert main(["visualize", "--agent", "a", "--output", str(tmp_path / "x.png")]) == 2
    assert "already there" in capsys.readouterr().err
    assert main(["visualize", "--agent", "a", "--output", str(tmp_path / "x.gif")]) == 2
    assert ".png" in capsys.readouterr().err
    assert (tmp_path / "x.png").read_text() == "mine"
