import re
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from toprl_export.errors import UserError
from toprl_export.pruning.schedule import Schedule, average_kept, lowest_budget, solve_schedule


def layer_by_layer_average(n: int, layers: int, stage_layers, counts) -> float:
    tokens = []
    for layer in range(layers):
        passed = sum(stage <= layer for stage in stage_layers)
        tokens.append(counts[passed - 1] if passed else n)
    return sum(tokens) / layers


@st.composite
def solvable(draw):
    n, layers = draw(st.integers(1, 3000)), draw(st.integers(1, 40))
    stage_layers = sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1, max_size=5)))
    lowest = lowest_budget(n, layers, stage_layers[0])
    assume(lowest <= n)
    return n, layers, stage_layers, draw(st.integers(lowest, n)), draw(st.sampled_from([1.0, 0.9, 0.6, 0.25, 1e-3]))


@given(solvable())
def test_a_schedule_never_exceeds_the_budget_and_misses_less_than_one_token(case):
    n, layers, stage_layers, budget, decay = case
    schedule = solve_schedule(n, layers, stage_layers, budget, decay)
    counts = schedule.keep_counts
    assert len(counts) == len(stage_layers)
    assert all(1 <= count <= n for count in counts)
    assert all(later <= earlier for earlier, later in pairwise(counts))
    met = layer_by_layer_average(n, layers, stage_layers, counts)
    assert schedule.average_kept == pytest.approx(met, abs=1e-9)
    assert budget - 1 < met <= budget + 1e-9


@given(solvable())
def test_counts_follow_the_decay_where_they_are_free(case):
    n, layers, stage_layers, budget, decay = case
    counts = solve_schedule(n, layers, stage_layers, budget, decay).keep_counts
    for earlier, later in pairwise(counts):
        if earlier < n - 3 and later > 4:
            # Each count may stand up to 3 from the ideal curve, plus rounding.
            assert abs(later - decay * earlier) <= 3.5 * (1 + decay)


def test_a_case_worked_by_hand():
    # Layers 0-1, 2-4, 5-7 hold k1, k2, k3 tokens: 2·k1 + 3·k2 + 3·k3 = 192·8 = 1536. With k2 = .6 k1 and
    # k3 = .36 k1 that is 4.88·k1, so k1 = 314.75, k2 = 188.85, k3 = 113.31; 2·315 + 3·189 + 3·113 = 1536.
    assert solve_schedule(576, 8, (0, 2, 5), 192) == Schedule(192, (315, 189, 113), 192.0)
    # 2·k1 + 3·k2 + 3·k3 = 512: k1 = 104.9, 62.95, 37.77; 2·k1 must leave a multiple of 3: 106, 63, 37.
    assert solve_schedule(576, 8, (0, 2, 5), 64) == Schedule(64, (106, 63, 37), 64.0)


@given(st.integers(1, 5000), st.integers(1, 40))
def test_a_budget_of_n_prunes_nothing(n, layers):
    stage_layers = range(0, layers, 3)
    assert solve_schedule(n, layers, stage_layers, n).keep_counts == (n,) * len(stage_layers)


@given(st.integers(1, 3000), st.integers(1, 40), st.data())
def test_the_stated_range_is_exact(n, layers, data):
    first = data.draw(st.integers(0, layers - 1))
    lowest = lowest_budget(n, layers, first)
    if lowest <= n:
        solve_schedule(n, layers, (first,), lowest)
    least = layer_by_layer_average(n, layers, (first,), (1,))
    assert lowest - 1 < least <= lowest


def test_unequal_layers_count_in_the_average():
    assert average_kept(100, 10, (2, 6), (50, 10)) == (2 * 100 + 4 * 50 + 4 * 10) / 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (576, 8, (2, 5), 64),
            "a budget of 64 tokens kept cannot be met with stages at decoder layers 2, 5, expected a whole number "
            "from 145 to 576: choose a budget in that range or an earlier first stage",
        ),
        (
            (576, 8, (0,), 577),
            "a budget of 577 tokens kept cannot be met with stages at decoder layers 0, expected a whole number "
            "from 1 to 576: choose a budget in that range",
        ),
        (
            (576, 8, (0,), 0),
            "a budget of 0 tokens kept cannot be met with stages at decoder layers 0, expected a whole number "
            "from 1 to 576: choose a budget in that range",
        ),
        (
            (576, 8, (0,), 64.5),
            "a budget of 64.5 tokens kept cannot be met with stages at decoder layers 0, expected a whole number "
            "from 1 to 576: choose a budget in that range",
        ),
        (
            (576, 8, (0, 8), 64),
            "the stage layers are 0, 8, expected at least one, ascending within 0 to 7: correct them",
        ),
        (
            (576, 8, (2, 2), 300),
            "the stage layers are 2, 2, expected at least one, ascending within 0 to 7: correct them",
        ),
        ((576, 8, (), 64), "the stage layers are none, expected at least one, ascending within 0 to 7: correct them"),
        (
            (0, 8, (0,), 64),
            "the model has 0 visual tokens and 8 decoder layers, expected at least 1 of each: correct the sizes",
        ),
        ((576, 8, (0,), 64, 1.5), "decay is 1.5, expected a number above 0 and at most 1: correct it"),
        ((576, 8, (0,), 64, 0.0), "decay is 0.0, expected a number above 0 and at most 1: correct it"),
    ],
)
def test_the_impossible_is_refused_with_what_was_expected(arguments, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        solve_schedule(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (64, (10, 20), 15.0),
            "budget 64 with keep counts (10, 20) is impossible, expected whole numbers of at least 1 that never "
            "increase from stage to stage: correct them",
        ),
        (
            (64, (10, 0), 5.0),
            "budget 64 with keep counts (10, 0) is impossible, expected whole numbers of at least 1 that never "
            "increase from stage to stage: correct them",
        ),
        (
            (64, (), 5.0),
            "budget 64 with keep counts () is impossible, expected whole numbers of at least 1 that never "
            "increase from stage to stage: correct them",
        ),
        ((64, (10,), float("nan")), "average_kept is nan, expected a finite number: correct it"),
    ],
)
def test_an_impossible_schedule_is_refused(arguments, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Schedule(*arguments)
