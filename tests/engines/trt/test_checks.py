"""What TensorRT cannot do is refused before anything is exported; the engine's own tests hold the rest."""

from __future__ import annotations

import re

import pytest

from toprl_engines.trt.checks import check_plan
from toprl_export.errors import UserError
from toprl_export.pruning.plan import make_plan


def test_tensorrt_selects_at_most_3840_tokens():
    check_plan(make_plan(3840, 8, (0,), "actor", (64, 3840)))
    message = (
        "budget 3841 keeps 3841 tokens at a stage, but TensorRT selects at most 3840: choose a smaller budget or "
        "--engine onnx"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        check_plan(make_plan(3841, 8, (0,), "actor", (64, 3841)))
