import torch
from torch import Tensor

from toprl_export.pruning.baselines.diversity import greedy_order, row_of


def keep_wanting(wanted: Tensor):
    def take(step: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
        return (wanted,)

    return take


def test_the_most_wanted_comes_first_and_the_lower_of_equals():
    wanted = torch.tensor([[0.5, 2.0, 0.5, -1.0], [1.0, 1.0, 1.0, 1.0]])
    order, taken = greedy_order(wanted, None, (), keep_wanting(wanted), 4)
    assert order.tolist() == [[1, 0, 2, 3], [0, 1, 2, 3]]
    assert taken.all()


def test_dead_tokens_wait_for_the_living_however_little_these_are_wanted():
    wanted = torch.tensor([[9.0, -torch.inf, -5.0, 9.0]])
    alive = torch.tensor([[False, True, True, False]])
    order, _ = greedy_order(wanted.clamp(min=-100), alive, (), keep_wanting(wanted.clamp(min=-100)), 4)
    assert order.tolist() == [[2, 1, 0, 3]]


def test_it_stops_after_the_steps_asked_for():
    wanted = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    order, taken = greedy_order(wanted, None, (), keep_wanting(wanted), 2)
    assert taken.tolist() == [[False, True, False, True]]
    assert order[0, [1, 3]].tolist() == [0, 1]


def test_each_step_sees_what_was_taken_and_what_it_kept():
    def take(step: Tensor, chosen: Tensor, log: Tensor) -> tuple[Tensor, ...]:
        log = torch.where(torch.arange(3) == step, chosen, log)
        # Next wanted is the neighbour on the right, around the end.
        return (torch.arange(3) == (chosen + 1) % 3).float(), log

    wanted = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    order, _ = greedy_order(wanted, None, (torch.zeros(2, 3, dtype=torch.int64),), take, 3)
    assert order.tolist() == [[1, 2, 0], [2, 0, 1]]


def test_a_row_is_picked_out_of_every_matrix():
    matrix = torch.arange(12).reshape(2, 2, 3)
    assert row_of(matrix, torch.tensor([[1], [0]])).tolist() == [[3, 4, 5], [6, 7, 8]]
