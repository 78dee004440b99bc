"""Profiles hold every request that a bundle serves, and the requested limits."""

from __future__ import annotations

import pytest

from toprl_engines.graph.signature import Layout, TensorSpec
from toprl_engines.trt.build.profiles import ProfileLimits, graph_profiles
from toprl_export.errors import UserError
from toprl_export.models.shape import DecoderShape
from toprl_export.pruning.plan import PruningPlan, make_plan

SHAPE = DecoderShape(layers=4, hidden=128, intermediate=256, heads=4, kv_heads=2, head_dim=64, vocabulary=99)
LIMITS = ProfileLimits(max_batch=3, max_text=40, max_new_tokens=20)


def layout_of(plan: PruningPlan, fixed: bool = False) -> Layout:
    first = int(plan.stage_layers[0] > 0)
    groups = tuple(index for index, span in enumerate(plan.groups) for _ in span)
    counts = plan.schedules[0].keep_counts if fixed else None
    return Layout(SHAPE, plan.visual_tokens, groups, first, len(plan.stages), counts)


def profiles(plan: PruningPlan, limits: ProfileLimits = LIMITS, max_length: int = 4096, fixed: bool = False):
    layout = layout_of(plan, fixed)
    specs = {
        "vision": layout.vision((TensorSpec("pixel_values", ("batch", 3, 40, 40)),)),
        "prefill": layout.prefill(),
        "decode": layout.decode(),
        "prefill_unpruned": layout.prefill_unpruned(),
    }
    found = graph_profiles(specs, layout, plan, limits, max_length)
    return {name: {one.name: one for one in ranges} for name, ranges in found.items()}


def test_batches_and_prompts_go_from_one_to_the_limits():
    found = profiles(make_plan(100, 4, (0, 2), "actor", (50, 20)))
    pixels = found["vision"]["pixel_values"]
    assert (pixels.min, pixels.opt, pixels.max) == ((1, 3, 40, 40), (1, 3, 40, 40), (3, 3, 40, 40))
    for graph in ("prefill", "prefill_unpruned"):
        ids, text = found[graph]["input_ids"], found[graph]["text_index"]
        assert (ids.min, ids.opt, ids.max) == ((1, 101), (1, 110), (3, 140))
        assert (text.min, text.opt, text.max) == ((1, 1), (1, 10), (3, 40))
    assert "agent_index" not in found["prefill"]  # a scalar has no sizes
    assert "keep_counts" not in found["prefill_unpruned"]


def test_keep_counts_go_from_the_smallest_budget_to_no_pruning():
    plan = make_plan(100, 4, (0, 2), "actor", (50, 20))
    counts = profiles(plan)["prefill"]["keep_counts"]
    assert counts.values
    assert (counts.min, counts.opt, counts.max) == (
        plan.schedule(20).keep_counts,
        plan.schedule(50).keep_counts,
        (100, 100),
    )


def test_fixed_counts_are_no_input():
    assert "keep_counts" not in profiles(make_plan(100, 4, (0, 2), "actor", (50,)), fixed=True)["prefill"]


def test_caches_follow_the_stages_and_masks_are_one_longer():
    plan = make_plan(100, 4, (1, 3), "actor", (60, 40))
    found = profiles(plan)["decode"]
    fewest, default = plan.schedule(40).keep_counts, plan.schedule(60).keep_counts
    for layer, (low, opt) in enumerate(
        [(100, 100), (fewest[0], default[0]), (fewest[0], default[0]), (fewest[1], default[1])]
    ):
        for kind in ("key", "value"):
            one = found[f"{kind}_{layer}"]
            assert one.min == (1, 2, low + 1, 64)
            assert one.opt == (1, 2, opt + 10 + 5, 64)
            assert one.max == (3, 2, 100 + 40 + 20, 64)  # without pruning all groups are as long
    assert [found[f"mask_{group}"].min[1] for group in range(3)] == [102, fewest[0] + 2, fewest[1] + 2]
    assert found["mask_2"].max == (3, 161)


def test_every_case_of_a_range_is_in_order():
    for plan in (make_plan(576, 4, (0, 2), "actor", (192, 64)), make_plan(30, 4, (2,), "actor", (20,))):
        for ranges in profiles(plan).values():
            for one in ranges.values():
                assert len({len(one.min), len(one.opt), len(one.max)}) == 1
                assert all(a <= b <= c for a, b, c in zip(one.min, one.opt, one.max, strict=True)), one


def test_a_model_that_ends_before_the_limits_shortens_them():
    found = profiles(make_plan(100, 4, (0,), "actor", (50,)), max_length=130)
    assert found["prefill"]["text_index"].max == (3, 29)
    assert found["decode"]["key_0"].max == (3, 2, 130, 64)
    with pytest.raises(UserError, match="the model's 100 positions leave no room for text beside 100 visual tokens"):
        profiles(make_plan(100, 4, (0,), "actor", (50,)), max_length=100)


def test_more_tokens_than_top_k_takes_are_decoded_but_not_selected():
    found = profiles(make_plan(5000, 4, (0,), "actor", (600,)), max_length=8192)
    assert found["prefill"]["keep_counts"].max == (3840,)
    assert found["decode"]["key_0"].max[2] == 5000 + 40 + 20
