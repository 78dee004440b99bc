import subprocess
import sys

import pytest

from toprl_export.errors import UserError
from toprl_export.pruning.scorer import SCORERS, Scorer


def test_every_registered_scorer_is_one():
    assert SCORERS.names() == ["actor", "random", "uniform", "fastv"]
    for name in SCORERS.names():
        assert issubclass(SCORERS.get(name), Scorer)
    assert [name for name in SCORERS.names() if SCORERS.get(name).needs_attention_row] == ["fastv"]


def test_an_unknown_scorer_is_refused():
    with pytest.raises(UserError, match="unknown scorer 'fast'; did you mean 'fastv'"):
        SCORERS.get("fast")


def test_plans_and_flops_need_no_torch():
    code = (
        "import sys, toprl_export.pruning.plan, toprl_export.pruning.flops, toprl_export.pruning.baselines.plans;"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
