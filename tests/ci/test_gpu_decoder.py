"""The checks of whole models, on shapes that a CPU runs in a moment."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ci.gpu.agreement import check_agreement, control, pruned_error, random_pruning, relative_error, unpruned_error
from ci.gpu.contenders import Prompt, Stock, Walk
from ci.gpu.context import Context, NotRun, Wrong
from ci.gpu.decoder_bench import DecoderBench, figures_of
from ci.gpu.shapes import LLAVA, LLAVA_NEXT, Shape, random_subject, small
from ci.gpu.supervise import read_cases
from ci.gpu.ways import CAUSAL, KERNEL, MASKED, OPEN
from toprl_export.models.walk import TokenTensors

BUDGETS = {40: (CAUSAL,), 20: (CAUSAL, MASKED, KERNEL)}


def context(folder: Path, seconds: float = 600.0) -> Context:
    return Context("cpu", quick=True, deadline=time.monotonic() + seconds, cases=folder / "cases.jsonl", scratch=folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> DecoderBench:
    subject = random_subject(replace(small(LLAVA_NEXT), layers=3), "cpu", torch.float32)
    return DecoderBench(context(tmp_path_factory.mktemp("bench")), subject, BUDGETS, (1,))


def prompt(bench: DecoderBench, batch: int = 2) -> Prompt:
    return Prompt(bench.subject.tokens(batch), bench.subject.encode(bench.subject.pixels(batch)))


@pytest.mark.parametrize(("shape", "tokens"), [(LLAVA, 576), (LLAVA_NEXT, 2880)])
def test_the_shapes_have_the_visual_tokens_of_their_models(shape: Shape, tokens: int):
    assert shape.visual_tokens == tokens
    assert small(shape).visual_tokens == tokens // 36


def test_every_table_has_a_case_for_every_contender_that_is_there(bench):
    bench.run()
    cases = read_cases(bench.context.cases)
    names = {f"batch 1, {name}" for name in bench.contenders()}
    for table in ("first token", "decoding", "memory"):
        assert {case.name for case in cases if case.table == table} == names
    assert len(names) == 6, "the kernel takes no fp32"
    assert [case.name for case in cases if case.status == "failed"] == []


def test_on_a_gpu_walks_are_also_replayed_and_their_memory_counted(bench, tmp_path, fake_cuda):
    there = replace(bench, context=replace(context(tmp_path), device="cuda"), budgets={20: (CAUSAL,)})
    there.run()
    cases = read_cases(there.context.cases)
    assert [case.name for case in cases if case.status != "ok"] == []
    walks = {f"batch 1, {name}" for name, one in there.contenders().items() if isinstance(one, Walk)}
    for table in ("decoding, CUDA graph", "prompt, CUDA graph"):
        assert {case.name for case in cases if case.table == table} == walks
    assert fake_cuda.count("record") == 2 * len(walks)
    assert {case.figures["peak_above_weights_gib"] for case in cases if case.table == "memory"} == {2.0}


def test_the_walk_agrees_in_every_way_that_is_there(bench, tmp_path):
    found = context(tmp_path)
    check_agreement(found, bench.subject, 20, (CAUSAL, MASKED, KERNEL))
    cases = {(case.table, case.name): case for case in read_cases(found.cases)}
    assert {name: case.status for name, case in cases.items()} == {
        ("agreement", "walk, unpruned, SDPA, causal, image first"): "ok",
        ("agreement", "walk, unpruned, SDPA, mask, text, image, text"): "ok",
        ("control", "no causality"): "ok",
        ("pruned", "walk, 20 kept, SDPA, causal"): "ok",
        ("pruned", "walk, 20 kept, our kernel"): "not run",
    }


def test_weights_are_the_same_numbers_in_fp32(bench):
    rough = random_subject(replace(small(LLAVA), layers=1), "cpu", torch.bfloat16)
    exact = rough.in_fp32()
    pairs = zip(rough.network.parameters(), exact.network.parameters(), strict=True)
    assert all(b.dtype == torch.float32 and torch.equal(a.float(), b) for a, b in pairs)
    assert rough.dtype == next(rough.network.parameters()).dtype == torch.bfloat16
    assert exact.text_config is not rough.text_config


@torch.inference_mode()
def test_stock_and_walk_decode_the_same_tokens(bench):
    asked = prompt(bench)
    logits = []
    stocks = (Stock(bench.subject, MASKED), Stock(bench.subject, CAUSAL))
    for contender in (*stocks, Walk(bench.subject, CAUSAL), Walk(bench.subject, MASKED)):
        filled = contender.prefill(asked)
        state, found, position = contender.start(filled), filled.logits, asked.last_position
        for _ in range(3):
            position = position + 1
            found, state = contender.step(state, found.argmax(-1, keepdim=True), position)
        logits.append(found)
    for found in logits[1:]:
        assert relative_error(found, logits[0]) < 1e-5


@torch.inference_mode()
def test_a_walk_that_is_not_causal_or_misplaced_is_told_apart(bench):
    asked, subject = prompt(bench), bench.subject
    with pytest.raises(Wrong, match="the logits differ"):
        unpruned_error(subject, OPEN, asked)
    doubled = TokenTensors(**(vars(asked.tokens) | {"position_ids": asked.tokens.position_ids * 2}))
    moved = Walk(subject, CAUSAL).prefill(Prompt(doubled, asked.visual)).logits
    assert relative_error(moved, Walk(subject, CAUSAL).prefill(asked).logits) > 1e-2


@torch.inference_mode()
def test_a_control_that_shows_nothing_is_refused(bench, monkeypatch):
    monkeypatch.setattr("ci.gpu.agreement.OPEN", CAUSAL)
    with pytest.raises(Wrong, match="only"):
        control(bench.subject, prompt(bench))


@torch.inference_mode()
def test_a_pruned_walk_by_a_wrong_way_is_told_apart(bench):
    pruning, subject = random_pruning(bench.subject, 20), bench.subject
    assert pruned_error(subject, subject, pruning, CAUSAL, prompt(bench), {})["of_sdpa_error"] < 1
    with pytest.raises(Wrong, match="times SDPA's error"):
        pruned_error(subject, subject, pruning, OPEN, prompt(bench), {})
    with pytest.raises(NotRun, match="no triton"):
        pruned_error(subject, subject, pruning, KERNEL, prompt(bench), {KERNEL: "no triton"})


@torch.inference_mode()
def test_a_pruned_walk_keeps_the_budget_and_replays_its_choice(bench):
    asked, text = prompt(bench), bench.subject.shape.text
    pruning = random_pruning(bench.subject, 20)
    pruned = Walk(bench.subject, CAUSAL, pruning).prefill(asked)
    kept_per_layer = [keys.shape[2] - text for keys in pruned.keys]
    assert sum(kept_per_layer) / len(kept_per_layer) == pytest.approx(20, abs=0.5)
    assert tuple(stage.shape[1] for stage in pruned.kept) == pruning.keep_counts
    again = Walk(bench.subject, MASKED, pruning, replay=pruned.kept).prefill(asked)
    assert relative_error(again.logits, pruned.logits) < 1e-5
    assert pruned.cache_bytes < Walk(bench.subject, CAUSAL).prefill(asked).cache_bytes


@torch.inference_mode()
def test_a_contender_that_fails_is_recorded_and_the_race_goes_on(bench, tmp_path):
    class Broken(Walk):
        def prefill(self, prompt):
            raise RuntimeError("CUDA error: it broke")

    asked = prompt(bench, 1)
    racing = replace(bench, context=context(tmp_path))
    contenders = {"unpruned, walk": Walk(bench.subject, CAUSAL), "20 kept, broken": Broken(bench.subject, CAUSAL)}
    pixels = bench.subject.pixels(1)
    racing._race("first token", 1, contenders, lambda contender: racing._first_token(asked, pixels, contender))
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
    monkeypatch.setattr("ci.gpu.decoder_bench.take_turns", lambda *_: late())

    def late() -> dict[str, list[float]]:
        monkeypatch.setattr(Context, "seconds_left", -1.0)
        return {"unpruned, walk": [2.0, 2.0]}

    asked, pixels = prompt(bench, 1), bench.subject.pixels(1)
    walk = {"unpruned, walk": Walk(bench.subject, CAUSAL)}
    racing._race("first token", 1, walk, lambda contender: racing._first_token(asked, pixels, contender))
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
