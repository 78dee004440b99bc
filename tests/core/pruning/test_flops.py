import pytest

from toprl_export.pruning.flops import actor_flops, decoder_flops, layer_flops, plan_flops
from toprl_export.pruning.plan import make_plan


def test_llava_next_7b_costs_what_the_design_says():
    # Term by term: 4·2880·4096² = 193.27 G, 2·2880²·4096 = 67.95 G, 3·2880·4096·11008 = 389.57 G; 32 layers.
    assert layer_flops(2880, 4096, 11008) == 193_273_528_320 + 67_947_724_800 + 389_566_955_520
    assert decoder_flops([2880] * 32, 4096, 11008) / 1e12 == pytest.approx(20.8, abs=0.05)


def test_the_actor_costs_eq_11():
    assert actor_flops(4096, 64, 576) == 2 * (4096 * 64 + 2 * 64 * 64) * 576 == 311_427_072


def test_a_plan_by_hand():
    plan = make_plan(100, 4, (1, 3), "actor", (50,))
    schedule = plan.schedule(50)
    first, second = schedule.keep_counts
    report = plan_flops(plan, schedule, d=8, m=16, actor_hidden=4)
    assert report.unpruned == 4 * (4 * 100 * 64 + 2 * 10_000 * 8 + 3 * 100 * 8 * 16)
    expected = [4 * n * 64 + 2 * n * n * 8 + 3 * n * 8 * 16 for n in (100, first, first, second)]
    assert report.pruned == sum(expected)
    assert report.actor == 2 * (8 * 4 + 2 * 16) * (100 + first)
    assert report.ratio == report.unpruned / (report.pruned + report.actor)
    assert plan_flops(plan, schedule, d=8, m=16, actor_hidden=None).actor == 0


def test_pruning_nothing_saves_nothing():
    plan = make_plan(576, 8, (0, 2, 5), "random", (576, 64))
    assert plan_flops(plan, plan.schedule(576), 128, 384, None).ratio == 1
    assert plan_flops(plan, plan.schedule(64), 128, 384, None).ratio > 9


def test_seeing_the_question_costs_by_hand():
    plan = make_plan(100, 4, (0, 3), "actor", (30,))
    schedule = plan.schedule(30)
    blind = plan_flops(plan, schedule, 8, 16, 4).actor
    asking = plan_flops(plan, schedule, 8, 16, 4, condition="text").actor
    assert asking - blind == 2 * (2 * 16 * 8)  # at each of two stages one product of [16] with [16, 2·4]
    attending = plan_flops(plan, schedule, 8, 16, 4, residual="fastv").actor
    rows = 2 * (8 * 8 + 100 * 8) + 2 * (8 * 8 + schedule.keep_counts[0] * 8)
    keys = 2 * 100 * 8 * 8  # before layer 0 no layer has made them
    assert attending - blind == rows + keys
    coming = plan_flops(plan, schedule, 8, 16, 4, residual="pyramiddrop").actor
    assert coming - attending == 2 * schedule.keep_counts[0] * 8 * 8  # the keys of a layer that has not run
    assert plan_flops(plan, schedule, 8, 16, None, "text", "pyramiddrop").actor == 0
