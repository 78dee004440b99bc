"""The kernel check itself: its truth is right, and a wrong kernel does not pass it."""

from __future__ import annotations

import math
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ci.gpu.checks import kernel
from ci.gpu.checks.kernel import (
    KINDS,
    LONGEST,
    PADDED,
    Problem,
    Sizes,
    build_library,
    check_library,
    compare_error,
    compare_speed,
    control,
    errors,
    exact,
    library_attention,
    problem_of_kind,
    random_problem,
    sdpa,
    sizes_of_kind,
)
from ci.gpu.context import Context, NotRun, WrongResult
from toprl_flash_attention.library import Params, contiguous_params
from toprl_flash_attention.tiles import choose_form, table_of


def problem(kind: str, head_dim: int = 64, dtype: torch.dtype = torch.bfloat16) -> Problem:
    return problem_of_kind(kind, head_dim, dtype, "cpu", 40, seed=KINDS.index(kind))


def by_hand(made: Problem) -> torch.Tensor:
    """Row by row with Python's own numbers of which keys a query sees."""
    batch, heads, queries, _ = made.query.shape
    keys, groups = made.key.shape[2], heads // made.key.shape[1]
    answer = torch.zeros(made.query.shape, dtype=torch.float64)
    mask = None if made.mask is None else made.mask.expand(batch, heads, queries, keys)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                last = keys - queries + q if made.causal else keys - 1
                seen = [k for k in range(last + 1) if mask is None or bool(mask[b, h, q, k])]
                key, value = made.key[b, h // groups, seen].double(), made.value[b, h // groups, seen].double()
                answer[b, h, q] = (key @ made.query[b, h, q].double() * made.scale).softmax(0) @ value
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_answer_is_that_of_the_definition(kind):
    made = problem_of_kind(kind, 64, torch.float16, "cpu", 12, seed=0)
    torch.testing.assert_close(exact(made), by_hand(made), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sdpa_itself_passes_with_a_ratio_of_one(kind, dtype):
    assert compare_error(sdpa, problem(kind, dtype=dtype))["of_sdpa_error"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda made: replace(made, scale=made.scale * 1.1),
        lambda made: replace(made, causal=False),
        lambda made: replace(made, key=made.key.roll(1, dims=2)),
    ],
    ids=["another scale", "no causality", "keys moved by one"],
)
def test_a_wrong_kernel_is_refused(wrong):
    with pytest.raises(WrongResult, match="times SDPA's error"):
        compare_error(lambda made: sdpa(wrong(made)), problem("causal, keys before"))


def test_an_ignored_mask_or_group_is_refused():
    with pytest.raises(WrongResult):
        compare_error(lambda made: sdpa(replace(made, mask=None)), problem("padding mask"))
    swapped = problem("grouped heads")
    assert swapped.key.shape[1] < swapped.query.shape[1]

    def other_groups(made: Problem) -> torch.Tensor:
        times = made.query.shape[1] // made.key.shape[1]
        key, value = made.key.repeat(1, times, 1, 1), made.value.repeat(1, times, 1, 1)
        return sdpa(replace(made, key=key, value=value))

    if swapped.key.shape[1] > 1:  # with one head for all, both orders are the same
        with pytest.raises(WrongResult):
            compare_error(other_groups, swapped)


def test_an_answer_with_nan_or_of_another_type_is_refused():
    with pytest.raises(WrongResult, match="NaN"):
        compare_error(lambda made: torch.full_like(made.query, math.nan), problem("dense"))
    with pytest.raises(WrongResult, match="float32"):
        compare_error(lambda made: sdpa(made).float(), problem("dense"))


def test_the_control_is_far_beyond_what_may_pass():
    sizes = Sizes(1, 2, 2, queries=10, keys=30, head_dim=64)
    skewed = replace(random_problem(sizes, torch.bfloat16, "cpu", 0), causal=True)
    assert control(sdpa, skewed)["of_sdpa_error"] > 10


def test_grouped_heads_and_strides_are_what_their_names_say():
    assert not problem("strided").query.is_contiguous()
    assert problem("one query").query.shape[2] == problem("one query, padding mask").query.shape[2] == 1
    skewed = problem("causal, keys before")
    assert skewed.query.shape[2] < skewed.key.shape[2]
    assert problem("padding mask").mask is not None


def test_every_query_sees_a_key_and_some_keys_are_hidden():
    for kind in KINDS:
        allowed = problem(kind).allowed()
        if allowed is not None:
            assert allowed.any(-1).all()
            assert not allowed.all()


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_form_of_the_kernel_is_tried_with_a_mask_and_without(sm, dtype, head_dim):
    table, tried = table_of(sm), set()
    for seed, kind in enumerate(KINDS):
        sizes, masked = sizes_of_kind(kind, head_dim, dtype, LONGEST, seed), kind in (*PADDED, "full mask")
        wide, narrow = table[head_dim, "wide"], table[head_dim, "narrow"]
        tried.add((masked, choose_form(sizes.batch, sizes.heads, sizes.kv_heads, sizes.queries, wide, narrow)))
    assert tried == {(masked, form) for masked in (False, True) for form in ("wide", "narrow", "few")}


def test_a_fast_kernel_with_a_wrong_answer_is_refused(tmp_path):
    context = Context("cpu", True, math.inf, tmp_path / "cases.jsonl", tmp_path)
    made = replace(problem("causal"), mask=None)
    assert compare_speed(sdpa, made, context)["of_sdpa"] > 0
    with pytest.raises(WrongResult, match="answers differ"):
        compare_speed(lambda given: sdpa(replace(given, causal=False)), made, context)


def test_on_a_gpu_the_kernel_is_held_against_flash_attention_in_graphs(tmp_path, fake_cuda):
    context = Context("cuda", True, math.inf, tmp_path / "cases.jsonl", tmp_path)
    figures = compare_speed(sdpa, problem("causal"), context)
    assert figures.keys() == {"kernel_tflops", "sdpa_flash_tflops", "of_sdpa_flash"}
    assert fake_cuda.count("record") == 2
    assert fake_cuda.count("replay") == 4


def test_operations_are_counted_as_for_two_products():
    made = random_problem(Sizes(2, 3, 3, 4, 4, 64), torch.float16, "cpu", 0)
    assert made.flops == 4 * 2 * 3 * 4 * 4 * 64
    assert replace(made, causal=True).flops == 4 * 2 * 3 * (1 + 2 + 3 + 4) * 64


def test_errors_are_infinite_where_numbers_are_missing():
    truth = torch.ones(3, dtype=torch.float64)
    assert errors(torch.tensor([1.0, math.nan, 1.0]), truth) == (math.inf, math.inf)
    assert errors(torch.tensor([1.0, 1.0, 2.0]), truth) == (pytest.approx(1 / math.sqrt(3)), 1.0)


def test_the_rectangle_is_causal_from_its_lower_right_corner():
    made = replace(random_problem(Sizes(1, 1, 1, 2, 5, 64), torch.float16, "cpu", 0), causal=True)
    first_query = replace(made, query=made.query[:, :, :1], key=made.key[:, :, :4], value=made.value[:, :, :4])
    alone = scaled_dot_product_attention(*(x.double() for x in (first_query.query, first_query.key, first_query.value)))
    torch.testing.assert_close(exact(made)[:, :, :1], alone)


class FakeLibrary:
    """Remembers the call that it was given."""

    params: Params

    def workspace_size(self, params: Params) -> int:
        return 64 if params.mask else 0

    def forward(self, params: Params, stream: int) -> None:
        self.params = params
        assert stream == 7


def context(folder: Path, device: str) -> Context:
    return Context(device, True, time.monotonic() + 60, folder / "cases.jsonl", folder)


@pytest.mark.parametrize("kind", ["strided", "padding mask", "full mask", "one query"])
def test_the_library_is_given_addresses_strides_and_a_workspace(kind, fake_cuda):
    made, built = problem_of_kind(kind, 64, torch.bfloat16, "cpu", 12, KINDS.index(kind)), FakeLibrary()
    answer = library_attention(built, contiguous_params)(made)
    given = built.params
    assert (answer.shape, answer.dtype) == (made.query.shape, made.query.dtype)
    assert (given.query, given.key, given.value) == tuple(x.data_ptr() for x in (made.query, made.key, made.value))
    assert tuple(given.query_strides) == made.query.stride()[:3]
    assert tuple(given.out_strides) == answer.stride()[:3]
    assert bool(given.mask) == bool(given.workspace) == (made.mask is not None)
    assert (given.dtype, given.q_len, given.k_len) == (1, made.query.shape[2], made.key.shape[2])


@pytest.mark.parametrize(("code", "error"), [(2, NotRun), (1, subprocess.CalledProcessError)])
def test_what_cannot_be_built_is_not_run_and_what_fails_to_is_a_failure(tmp_path, monkeypatch, code, error):
    script = tmp_path / "build.sh"
    script.write_text(f"echo 'error: cmake is not installed' >&2; exit {code}")
    monkeypatch.setattr(kernel, "BUILD", script)
    with pytest.raises(error, match="cmake" if code == 2 else "exit status 1"):
        build_library(context(tmp_path, "cuda"))


def test_without_a_gpu_nothing_is_built(tmp_path):
    with pytest.raises(NotRun, match="not run on a GPU"):
        check_library(context(tmp_path, "cpu"))
