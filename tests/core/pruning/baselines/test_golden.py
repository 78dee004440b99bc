"""The tokens that every method keeps of one fixed input, pinned: a change of a method's rule must show here.

``python -m tests.core.pruning.baselines.test_golden`` prints them anew. Indices only; that they are right is shown by
each method's own tests.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.stage_inputs import random_inputs
from toprl_export.pruning.baselines.specs import BASELINES
from toprl_export.pruning.scorer import make_scorer
from toprl_export.pruning.select import select

GOLDEN = Path(__file__).with_name("golden.json")
METHODS = tuple(name for name in BASELINES if name not in ("random", "fastv-p"))
"""Random draws, and FastV-P shares FastV's scorer."""
COUNTS = (5, 12)


def kept(name: str) -> dict[str, list[list[int]]]:
    """What a method keeps of three rows of 32 tokens, by keep count."""
    inputs = random_inputs(42, batch=3, tokens=32, text=9, width=24, all_alive=True)
    scorer = make_scorer(name)
    return {str(count): select(scorer(replace(inputs, keep=count)), count).tolist() for count in COUNTS}


@pytest.mark.parametrize("name", METHODS)
def test_the_kept_tokens_are_the_pinned_ones(name: str) -> None:
    assert kept(name) == json.loads(GOLDEN.read_text())[name]


def test_every_method_is_pinned_and_no_two_keep_the_same() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(METHODS)
    # FastV and PyramidDrop score alike by the row they are given; what differs is the layer that it comes from.
    same = {name for name in METHODS if golden[name] == golden["fastv"]}
    assert same == {"fastv", "pyramiddrop"}
    assert len({json.dumps(one) for one in golden.values()}) == len(METHODS) - 1


if __name__ == "__main__":
    print(json.dumps({name: kept(name) for name in METHODS}))
