import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from toprl_export.pruning.select import gather_tokens, select


def lexsort_selection(scores: np.ndarray, count: int, lower_index_wins: bool = True) -> np.ndarray:
    """The same choice by NumPy: order by falling score, then by index."""
    index = np.arange(scores.shape[1]) * (1 if lower_index_wins else -1)
    return np.stack([np.sort(np.lexsort((index, -row))[:count]) for row in scores])


@st.composite
def scores_and_count(draw):
    rows, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    values = draw(st.sampled_from([[0.0], [-1.0, -0.0, 0.0, 2.0], [float("-inf"), 1.0, float("inf")]]))
    flat = draw(st.lists(st.sampled_from(values), min_size=rows * tokens, max_size=rows * tokens))
    return np.array(flat, dtype=np.float32).reshape(rows, tokens), draw(st.integers(1, tokens))


@given(scores_and_count())
def test_ties_go_to_the_lower_index_and_the_order_ascends(case):
    scores, count = case
    chosen = select(torch.from_numpy(scores), count)
    assert chosen.dtype == torch.int64
    assert (np.diff(chosen.numpy()) > 0).all()
    np.testing.assert_array_equal(chosen.numpy(), lexsort_selection(scores, count))


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_long_rows_with_distinct_scores(count, seed):
    scores = np.random.default_rng(seed).permutation(300)[None].astype(np.float32)
    np.testing.assert_array_equal(select(torch.from_numpy(scores), count).numpy(), lexsort_selection(scores, count))


def test_half_precision_scores_are_compared_as_they_are():
    scores = torch.tensor([[1.0, 1.001, 0.999, 1.0]], dtype=torch.float16)
    assert select(scores, 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("count", [0, 6, -1])
def test_an_impossible_count_is_refused(count):
    with pytest.raises(ValueError, match=f"cannot keep {count} of 5 tokens"):
        select(torch.zeros(2, 5), count)


@pytest.mark.parametrize("shape", [(3, 7), (3, 7, 4), (3, 7, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.int64])
def test_gather_takes_the_indexed_tokens_of_each_row(shape, dtype):
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 10 - 5).to(dtype)
    index = torch.tensor([[0, 2], [6, 1], [3, 3]])
    gathered = gather_tokens(x, index)
    assert gathered.dtype == dtype
    expected = np.stack([row[take] for row, take in zip(x.numpy(), index.numpy(), strict=True)])
    np.testing.assert_array_equal(gathered.numpy(), expected)


def test_gather_reads_transposed_memory():
    x = torch.arange(24).reshape(4, 2, 3).transpose(0, 1)
    index = torch.tensor([[3, 0], [1, 2]])
    assert torch.equal(gather_tokens(x, index), torch.stack([x[0, [3, 0]], x[1, [1, 2]]]))


class Keep(nn.Module):
    def forward(self, scores: Tensor, visual: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = select(scores, count.item())
        return index, gather_tokens(visual, index), gather_tokens(scores > 0, index)


def test_the_exported_selection_equals_the_eager_one_also_with_ties(as_onnx):
    module, rng = Keep(), np.random.default_rng(5)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    example = (torch.rand(2, 10), torch.rand(2, 10, 4), torch.tensor(4))
    run = as_onnx(module, example, ({0: batch, 1: tokens}, {0: batch, 1: tokens}, {}))
    ties_decided = False
    for rows, n, count in [(2, 10, 4), (1, 576, 64), (3, 577, 300), (1, 12, 1), (2, 33, 33), (1, 1, 1)]:
        scores = rng.integers(-2, 3, (rows, n)).astype(np.float32)
        inputs = (torch.from_numpy(scores), torch.from_numpy(rng.random((rows, n, 4), np.float32)), torch.tensor(count))
        for exported, eager in zip(run(*inputs), module(*inputs), strict=True):
            np.testing.assert_array_equal(exported, eager.numpy())
        opposite = lexsort_selection(scores, count, lower_index_wins=False)
        ties_decided |= bool((opposite != module(*inputs)[0].numpy()).any())
    assert ties_decided, "the examples must hold ties that another rule would break differently"
