import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_export.errors import UserError
from toprl_export.fields import read_fields
from toprl_export.pruning.plan import (
    PruningPlan,
    Schedule,
    Site,
    Stage,
    default_stage_layers,
    make_plan,
    solve_schedule,
)

PLAN = make_plan(576, 8, (0, 2, 5), "actor", (192, 64))


def read_plan(payload):
    return read_fields(PruningPlan, payload, "the plan")


def refused(message: str):
    return pytest.raises(UserError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("text", ["vision:0", "vision:11", "projector", "decoder:0", "decoder:31"])
def test_a_site_is_read_as_it_is_written(text):
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize("text", ["", "decoder", "decoder:", "decoder:-1", "decoder:2.5", "projector:1", "llm:2", "²"])
def test_an_unknown_site_is_refused(text):
    with refused(
        f"pruning site {text!r} is unknown, expected vision:<layer>, projector or decoder:<layer> with layers "
        "counted from 0: write it like decoder:2"
    ):
        Site.parse(text)


def test_a_site_that_cannot_be_is_refused_without_parsing():
    with pytest.raises(UserError, match="pruning site 'decoder:-1' is unknown"):
        Site("decoder", -1)
    with pytest.raises(UserError, match="pruning site 'vision' is unknown"):
        Site("vision")


def test_sites_are_ordered_as_data_flows():
    ordered = ["vision:2", "vision:10", "projector", "decoder:0", "decoder:2", "decoder:10"]
    assert [str(site) for site in sorted(map(Site.parse, reversed(ordered)))] == ordered


def test_a_plan_has_one_schedule_per_budget():
    assert PLAN.stages == tuple(Stage(Site("decoder", layer), "actor") for layer in (0, 2, 5))
    assert PLAN.schedule(192).keep_counts == (315, 189, 113)
    assert PLAN.schedule(64).keep_counts == (106, 63, 37)
    with refused("the plan has no budget of 100 tokens kept, expected one of 64, 192: choose one"):
        PLAN.schedule(100)


def test_groups_and_tokens_of_each_layer():
    assert PLAN.groups == (range(0, 2), range(2, 5), range(5, 8))
    assert PLAN.tokens_per_layer(PLAN.schedule(64)) == (106, 106, 63, 63, 63, 37, 37, 37)
    late = make_plan(576, 8, (1, 4), "fastv", (192,))
    assert late.groups == (range(0, 1), range(1, 4), range(4, 8))
    first, second = late.schedule(192).keep_counts
    assert late.tokens_per_layer(late.schedule(192)) == (576, *[first] * 3, *[second] * 4)


@given(st.integers(1, 600), st.integers(1, 33), st.data())
def test_tokens_per_layer_average_what_the_schedule_states(n, layers, data):
    stage_layers = (0, *sorted(data.draw(st.sets(st.integers(1, 32).filter(lambda layer: layer < layers), max_size=4))))
    budgets = data.draw(st.sets(st.integers(1, n), min_size=1, max_size=4))
    plan = make_plan(n, layers, stage_layers, "actor", sorted(budgets))
    assert [layer for group in plan.groups for layer in group] == list(range(layers))
    for schedule in plan.schedules:
        tokens = plan.tokens_per_layer(schedule)
        assert len(tokens) == layers
        assert sum(tokens) / layers == pytest.approx(schedule.average_kept)
    assert read_plan(json.loads(json.dumps(plan.to_json()))) == plan


def test_the_file_says_what_it_is():
    payload = PLAN.to_json()
    assert (payload["format"], payload["version"]) == ("toprl-export/plan", 1)
    assert payload["stages"][1] == {"site": "decoder:2", "scorer": "actor"}


def test_another_budget_falls_as_the_plan_does():
    plan = make_plan(576, 8, (0, 2, 5), "actor", (64,), decay=0.5)
    assert plan.schedule_or_solved(64) is plan.schedules[0]
    assert plan.schedule_or_solved(32).keep_counts == (59, 31, 15)  # near halving, spending all 256 token-layers
    read = read_plan(json.loads(json.dumps(plan.to_json())))
    assert read.schedule_or_solved(32) == plan.schedule_or_solved(32)
    silent = {name: value for name, value in plan.to_json().items() if name != "decay"}  # as older files are
    old = read_plan(silent)
    assert old.schedule_or_solved(32) == solve_schedule(576, 8, (0, 2, 5), 32, 0.6)
    assert old.to_json() == silent
    assert json.dumps(replace(plan, decay=1).to_json()) == json.dumps(replace(plan, decay=1.0).to_json())


def test_sites_outside_the_decoder_are_kept_but_not_run():
    stages = (Stage(Site.parse("vision:3"), "x"), Stage(Site.parse("projector"), "x"), *PLAN.stages[1:2])
    plan = PruningPlan(576, 8, stages, (Schedule(64, (300, 200, 10), 64.0),))
    assert read_plan(plan.to_json()) == plan
    message = "this release prunes at decoder sites only, but the plan has vision:3: use sites like decoder:2"
    for use in (lambda: plan.stage_layers, lambda: plan.groups, lambda: plan.tokens_per_layer(plan.schedules[0])):
        with refused(message):
            use()


def changed(**fields):
    return {**PLAN.to_json(), **fields}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            changed(version=2),
            "the plan: version is 2, expected 1: write the file again",
        ),
        (
            [1],
            "the plan: the content is [1], expected an object: write the file again",
        ),
        (
            changed(visual_tokens="many"),
            "the plan: visual_tokens is 'many', expected a whole number: write the file again",
        ),
        (
            changed(stages=[{"site": "decoder:0"}]),
            "the plan lacks stages[0].scorer: write the file again",
        ),
        (
            {name: value for name, value in PLAN.to_json().items() if name != "schedules"},
            "the plan lacks schedules: write the file again",
        ),
        (
            changed(decay="steep"),
            "the plan: decay is 'steep', expected a number: write the file again",
        ),
        (
            changed(decay=0),
            "the plan: decay is 0.0, expected a number above 0 and at most 1: correct it",
        ),
        (
            changed(decoder_layers=4),
            "the plan: the stage layers are 0, 2, 5, expected at least one, ascending within 0 to 3: correct them",
        ),
    ],
)
def test_a_damaged_plan_is_refused(payload, message):
    with refused(message):
        read_plan(payload)


def test_an_impossible_plan_is_refused():
    with refused(
        "the plan's sites are decoder:5, decoder:2, expected at least one, each deeper than the one before: "
        "put them in order"
    ):
        replace(PLAN, stages=(PLAN.stages[2], PLAN.stages[1]))
    with refused(
        "the plan's sites are none, expected at least one, each deeper than the one before: put them in order"
    ):
        replace(PLAN, stages=())
    with refused("the plan's budgets are 64, 64, expected at least one, each once: correct them"):
        make_plan(576, 8, (0, 2, 5), "actor", (64, 64))
    with refused("the plan's budgets are none, expected at least one, each once: correct them"):
        replace(PLAN, schedules=())
    with refused(
        "budget 64 keeps (106, 63), expected one count per stage (3), none above the 576 visual tokens: correct it"
    ):
        replace(PLAN, schedules=(Schedule(64, (106, 63), 64.0),))
    with refused(
        "budget 64 keeps (577, 63, 37), expected one count per stage (3), none above the 576 visual tokens: correct it"
    ):
        replace(PLAN, schedules=(Schedule(64, (577, 63, 37), 64.0),))
    with refused(
        "budget 64 states an average of 63 tokens kept, but its keep counts (106, 63, 37) average 64 over 8 layers: "
        "correct it"
    ):
        replace(PLAN, schedules=(Schedule(64, (106, 63, 37), 63.0),))


@pytest.mark.parametrize(
    ("layers", "stages"), [(1, (0,)), (2, (0, 1)), (4, (0, 1, 2)), (8, (0, 2, 5)), (12, (0, 3, 7)), (32, (0, 8, 20))]
)
def test_default_stages_scale_with_the_depth(layers, stages):
    assert default_stage_layers(layers) == stages
