"""The checks of whole models, on shapes that a CPU runs in a moment."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ci.gpu.checks.decoder import (
    DecoderBench,
    check_agreement,
    control,
    figures_of,
    pruned_error,
    random_pruning,
    relative_error,
    unpruned_error,
)
from ci.gpu.context import Context, NotRun, WrongResult
from ci.gpu.decoders import CAUSAL, KERNEL, MASKED, NOT_CAUSAL, HuggingFaceDecoder, Prompt, WalkDecoder
from ci.gpu.models import LLAVA, LLAVA_NEXT, Shape, random_model, small
from ci.gpu.process import read_cases
from toprl_export.models.walk import TokenTensors

BUDGETS = {40: (CAUSAL,), 20: (CAUSAL, MASKED, KERNEL)}


def context(folder: Path, seconds: float = 600.0) -> Context:
    return Context("cpu", quick=True, deadline=time.monotonic() + seconds, cases=folder / "cases.jsonl", scratch=folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> DecoderBench:
    model = random_model(replace(small(LLAVA_NEXT), layers=3), "cpu", torch.float32)
    return DecoderBench(context(tmp_path_factory.mktemp("bench")), model, BUDGETS, (1,))


def prompt(bench: DecoderBench, batch: int = 2) -> Prompt:
    return Prompt(bench.model.tokens(batch), bench.model.encode(bench.model.pixels(batch)))


@pytest.mark.parametrize(("shape", "tokens"), [(LLAVA, 576), (LLAVA_NEXT, 2880)])
def test_the_shapes_have_the_visual_tokens_of_their_models(shape: Shape, tokens: int):
    assert shape.visual_tokens == tokens
    assert small(shape).visual_tokens == tokens // 36


def test_every_table_has_a_case_for_every_contender_that_is_there(bench):
    bench.run()
    cases = read_cases(bench.context.cases)
    names = {f"batch 1, {name}" for name in bench.candidates()}
    for table in ("first token", "decoding", "memory"):
        assert {case.name for case in cases if case.table == table} == names
    assert len(names) == 6, "the kernel takes no fp32"
    assert [case.name for case in cases if case.status == "failed"] == []


def test_on_a_gpu_walks_are_also_replayed_and_their_memory_counted(bench, tmp_path, fake_cuda):
    there = replace(bench, context=replace(context(tmp_path), device="cuda"), budgets={20: (CAUSAL,)})
    there.run()
    cases = read_cases(there.context.cases)
    assert [case.name for case in cases if case.status != "ok"] == []
    walks = {f"batch 1, {name}" for name, one in there.candidates().items() if isinstance(one, WalkDecoder)}
    for table in ("decoding, CUDA graph", "prompt, CUDA graph"):
        assert {case.name for case in cases if case.table == table} == walks
    assert fake_cuda.count("record") == 2 * len(walks)
    assert {case.figures["peak_above_weights_gib"] for case in cases if case.table == "memory"} == {2.0}


def test_the_walk_agrees_in_every_way_that_is_there(bench, tmp_path):
    found = context(tmp_path)
    check_agreement(found, bench.model, 20, (CAUSAL, MASKED, KERNEL))
    cases = {(case.table, case.name): case for case in read_cases(found.cases)}
    assert {name: case.status for name, case in cases.items()} == {
        ("agreement", "walk, unpruned, SDPA, causal, image first"): "ok",
        ("agreement", "walk, unpruned, SDPA, mask, text, image, text"): "ok",
        ("control", "no causality"): "ok",
        ("pruned", "walk, 20 kept, SDPA, causal"): "ok",
        ("pruned", "walk, 20 kept, our kernel"): "not run",
    }


def test_weights_are_the_same_numbers_in_fp32(bench):
    rough = random_model(replace(small(LLAVA), layers=1), "cpu", torch.bfloat16)
    exact = rough.in_fp32()
    pairs = zip(rough.network.parameters(), exact.network.parameters(), strict=True)
    assert all(b.dtype == torch.float32 and torch.equal(a.float(), b) for a, b in pairs)
    assert rough.dtype == next(rough.network.parameters()).dtype == torch.bfloat16
    assert exact.text_config is not rough.text_config


@torch.inference_mode()
def test_stock_and_walk_decode_the_same_tokens(bench):
    prompts = prompt(bench)
    logits = []
    stocks = (HuggingFaceDecoder(bench.model, MASKED), HuggingFaceDecoder(bench.model, CAUSAL))
    for candidate in (*stocks, WalkDecoder(bench.model, CAUSAL), WalkDecoder(bench.model, MASKED)):
        filled = candidate.prefill(prompts)
        state, found, position = candidate.start(filled), filled.logits, prompts.last_position
        for _ in range(3):
            position = position + 1
            found, state = candidate.step(state, found.argmax(-1, keepdim=True), position)
        logits.append(found)
    for found in logits[1:]:
        assert relative_error(found, logits[0]) < 1e-5


@torch.inference_mode()
def test_a_walk_that_is_not_causal_or_misplaced_is_told_apart(bench):
    prompts, model = prompt(bench), bench.model
    with pytest.raises(WrongResult, match="the logits differ"):
        unpruned_error(model, NOT_CAUSAL, prompts)
    doubled = TokenTensors(**(vars(prompts.tokens) | {"position_ids": prompts.tokens.position_ids * 2}))
    moved = WalkDecoder(model, CAUSAL).prefill(Prompt(doubled, prompts.visual)).logits
    assert relative_error(moved, WalkDecoder(model, CAUSAL).prefill(prompts).logits) > 1e-2


@torch.inference_mode()
def test_a_control_that_shows_nothing_is_refused(bench, monkeypatch):
    monkeypatch.setattr("ci.gpu.checks.decoder.NOT_CAUSAL", CAUSAL)
    with pytest.raises(WrongResult, match="only"):
        control(bench.model, prompt(bench))


@torch.inference_mode()
def test_a_pruned_walk_by_a_wrong_way_is_told_apart(bench):
    pruning, model = random_pruning(bench.model, 20), bench.model
    assert pruned_error(model, model, pruning, CAUSAL, prompt(bench), {})["of_sdpa_error"] < 1
    with pytest.raises(WrongResult, match="times SDPA's error"):
        pruned_error(model, model, pruning, NOT_CAUSAL, prompt(bench), {})
    with pytest.raises(NotRun, match="no triton"):
        pruned_error(model, model, pruning, KERNEL, prompt(bench), {KERNEL: "no triton"})


@torch.inference_mode()
def test_a_pruned_walk_keeps_the_budget_and_replays_its_choice(bench):
    prompts, text = prompt(bench), bench.model.shape.text
    pruning = random_pruning(bench.model, 20)
    pruned = WalkDecoder(bench.model, CAUSAL, pruning).prefill(prompts)
    kept_per_layer = [keys.shape[2] - text for keys in pruned.keys]
    assert sum(kept_per_layer) / len(kept_per_layer) == pytest.approx(20, abs=0.5)
    assert tuple(stage.shape[1] for stage in pruned.kept) == pruning.keep_counts
    again = WalkDecoder(bench.model, MASKED, pruning, replay=pruned.kept).prefill(prompts)
    assert relative_error(again.logits, pruned.logits) < 1e-5
    assert pruned.cache_bytes < WalkDecoder(bench.model, CAUSAL).prefill(prompts).cache_bytes


@torch.inference_mode()
def test_a_contender_that_fails_is_recorded_and_the_race_goes_on(bench, tmp_path):
    class Broken(WalkDecoder):
        def prefill(self, prompt):
            raise RuntimeError("CUDA error: it broke")

    prompts = prompt(bench, 1)
    racing = replace(bench, context=context(tmp_path))
    candidates = {"unpruned, walk": WalkDecoder(bench.model, CAUSAL), "20 kept, broken": Broken(bench.model, CAUSAL)}
    pixels = bench.model.pixels(1)
    racing._race("first token", 1, candidates, lambda candidate: racing._first_token(prompts, pixels, candidate))
    broken, fine = read_cases(racing.context.cases)
    assert (broken.name, broken.status) == ("batch 1, 20 kept, broken", "failed")
    assert "CUDA error" in broken.why
    assert (fine.name, fine.status) == ("batch 1, unpruned, walk", "ok")
    assert fine.figures["speedup"] == 1


def test_when_time_is_over_what_is_left_is_recorded_as_not_run(bench, tmp_path):
    late = replace(bench, context=context(tmp_path, seconds=0))
    late.run()
    cases = read_cases(late.context.cases)
    assert cases
    assert {case.why for case in cases} == {"no time was left for it"}


@torch.inference_mode()
def test_a_race_that_ends_after_the_deadline_is_recorded(bench, tmp_path, monkeypatch):
    racing = replace(bench, context=context(tmp_path))
    monkeypatch.setattr("ci.gpu.checks.decoder.take_turns", lambda *_: late())

    def late() -> dict[str, list[float]]:
        monkeypatch.setattr(Context, "seconds_left", -1.0)
        return {"unpruned, walk": [2.0, 2.0]}

    prompts, pixels = prompt(bench, 1), bench.model.pixels(1)
    walk = {"unpruned, walk": WalkDecoder(bench.model, CAUSAL)}
    racing._race("first token", 1, walk, lambda candidate: racing._first_token(prompts, pixels, candidate))
    assert [case.figures["ms"] for case in read_cases(racing.context.cases)] == [2.0]


def test_speedups_are_medians_of_the_rounds_own_ratios_over_the_fastest_unpruned():
    times = {"unpruned, a": [8.0, 9.0, 10.0], "unpruned, b": [4.0, 6.0, 6.0], "20 kept": [2.0, 2.0, 3.0]}
    figures = figures_of(times, "20 kept", divide=1)
    assert figures["ms"] == 2.0
    assert figures["speedup"] == 2.0, "against b, whose ratios are 2, 3 and 2"
    assert figures_of(times, "unpruned, b", divide=2)["ms"] == 3.0


def test_logits_with_nan_have_no_error_that_could_pass():
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert math.isnan(relative_error(torch.tensor([3.0, math.nan]), truth))
