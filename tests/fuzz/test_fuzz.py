"""A slice of the fuzzer, and that it finds what it looks for."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz import campaign
from tests.fuzz.campaign import CRASH, FAULTS, HANG, SILENT, run
from tests.fuzz.mutations import mutate_safetensors, mutate_tree
from tests.fuzz.targets import TARGETS

CASES = 400
QUICK = tuple(name for name in TARGETS if name not in ("model",))


def test_a_slice_of_damage_is_refused_or_loads_as_it_says(tmp_path: Path):
    found = run(CASES, 0, tmp_path, QUICK)
    assert not found.faults, "\n".join(map(str, found.faults))
    counts = {kind: sum(of.values()) for kind, of in found.counts.items()}
    assert sum(counts.values()) == CASES and counts.keys() == set(QUICK)
    assert all(of["refused"] for of in found.counts.values())


def test_damaged_models_are_refused_or_load(tmp_path: Path):
    found = run(8, 0, tmp_path, ("model",))
    assert not found.faults, "\n".join(map(str, found.faults))


def _raise(error: BaseException):
    def load(_: Path) -> object:
        raise error

    return load


class _Turns:
    """Loads a whole specimen, and every later one by ``then``."""

    def __init__(self, then) -> None:
        self.first, self.then = True, then

    def __call__(self, directory: Path) -> object:
        if self.first:
            self.first = False
            return {"a": 1}
        return self.then(directory)


@pytest.mark.parametrize(
    ("then", "outcome"),
    [
        (_raise(KeyError("a")), CRASH),
        (_raise(RecursionError()), CRASH),
        (_raise(SystemExit(3)), CRASH),
        (lambda at: {"a": 2}, SILENT),
        (lambda at: [None for _ in iter(int, 1)], HANG),
    ],
)
def test_faults_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then, outcome: str):
    """The negative control: loaders that crash, hang or take what they should refuse."""
    monkeypatch.setattr(campaign, "SECONDS", 0.2)
    broken = replace(TARGETS["plan"], load=_Turns(then), vouched=True, says=None)
    monkeypatch.setitem(campaign.TARGETS, "plan", broken)
    found = run(1, 0, tmp_path, ("plan",))
    assert [fault.outcome for fault in found.faults] == [outcome] and outcome in FAULTS


def test_the_same_seed_makes_the_same_mutations():
    tree = {"a": [1, {"b": "text"}], "c": 2.5}
    made = [repr(mutate_tree(random.Random(seed), tree)) for seed in range(50)]
    assert made == [repr(mutate_tree(random.Random(seed), tree)) for seed in range(50)]
    assert len(set(made)) > 25 and tree == {"a": [1, {"b": "text"}], "c": 2.5}


def test_headers_of_safetensors_are_reached():
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    made = {mutate_safetensors(random.Random(seed), content) for seed in range(60)}
    resealed = [one for one in made if one[8:9] == b"{" and int.from_bytes(one[:8], "little") != len(header)]
    assert len(made) > 20 and resealed
