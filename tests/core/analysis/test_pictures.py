"""Pictures of the analyses: they show their figures, and nothing is cut off."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.analyses import ablation, cliff, sensitivity, transfer
from toprl_export.analysis.pictures import draw


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))


@pytest.mark.parametrize(
    ("one", "other"),
    [(cliff(), cliff(0.08)), (sensitivity(3), sensitivity(2)), (transfer(), transfer(0.6)), (ablation(), ablation(2))],
    ids=["cliff", "sensitivity", "transfer", "ablation"],
)
def test_pictures_show_their_figures_with_nothing_cut_off(one, other):
    picture = draw(one)
    shown = pixels(picture)
    assert shown.shape[1] >= 1000 and shown.shape[0] >= 400
    border = np.concatenate([shown[:3].ravel(), shown[-3:].ravel(), shown[:, :3].ravel(), shown[:, -3:].ravel()])
    assert (border == 255).all()
    assert draw(one) == picture
    changed = pixels(draw(other))
    assert changed.shape != shown.shape or (changed != shown).mean() > 0.001


def test_a_matrix_whose_diagonal_has_nothing_right_is_drawn():
    assert pixels(draw(transfer(None))).size
    assert "/ –" in transfer(None).markdown()
