"""The checks of whole models, on shapes that a CPU runs in a moment."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ci.gpu import decoder_bench
from ci.gpu.contenders import Prompt, Stock, Walk
from ci.gpu.context import Context, Wrong
from ci.gpu.decoder_bench import DecoderBench, figures_of, relative_error
from ci.gpu.shapes import LLAVA, LLAVA_NEXT, Shape, random_subject, small
from ci.gpu.supervise import read_cases
from ci.gpu.ways import CAUSAL, MASKED, OPEN
from toprl_export.models.walk import TokenTensors


def context(folder: Path, seconds: float = 600.0) -> Context:
    return Context("cpu", quick=True, deadline=time.monotonic() + seconds, cases=folder / "cases.jsonl", scratch=folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> DecoderBench:
    subject = random_subject(replace(small(LLAVA_NEXT), layers=3), "cpu", torch.float32)
    for parameter in subject.network.model.language_model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(8)  # default weights hide wrong positions and masks
    return DecoderBench.of(context(tmp_path_factory.mktemp("bench")), subject, (40, 20, 10))


def prompt(bench: DecoderBench, batch: int = 2) -> Prompt:
    return Prompt(bench.subject.tokens(batch), bench.subject.encode(bench.subject.pixels(batch)))


@pytest.mark.parametrize(("shape", "tokens"), [(LLAVA, 576), (LLAVA_NEXT, 2880)])
def test_the_shapes_have_the_visual_tokens_of_their_models(shape: Shape, tokens: int):
    assert shape.visual_tokens == tokens
    assert small(shape).visual_tokens == tokens // 36


def test_every_table_has_a_case_for_every_contender(bench, monkeypatch):
    monkeypatch.setattr(decoder_bench, "BATCHES", (1,))
    bench.context.cases.write_text("")
    bench.run()
    cases = read_cases(bench.context.cases)
    names = {f"batch 1, {name}" for name in bench.contenders()}
    for table in ("first token", "decoding", "memory"):
        assert {case.name for case in cases if case.table == table} == names
    assert len(names) == 6
    assert [case.name for case in cases if case.status == "failed"] == []
    agreement = {case.name: case for case in cases if case.table == "agreement"}
    assert agreement["walk, unpruned, against Hugging Face"].status == "ok"
    assert {case.status for case in agreement.values()} == {"ok", "not run"}, "the kernel takes no fp32"
    assert [case.status for case in cases if case.table == "control"] == ["ok"]


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
    asked = prompt(bench)
    truth = Stock(bench.subject, MASKED).prefill(asked)
    with pytest.raises(Wrong, match="the logits differ"):
        bench._agree(truth, Walk(bench.subject, OPEN), asked)
    tokens = TokenTensors(**(vars(asked.tokens) | {"position_ids": asked.tokens.position_ids * 2}))
    with pytest.raises(Wrong, match="the logits differ"):
        bench._agree(truth, Walk(bench.subject, CAUSAL), Prompt(tokens, asked.visual))
    with pytest.raises(Wrong, match="only"):
        bench._control(Walk(bench.subject, OPEN).prefill(asked), asked)


@torch.inference_mode()
def test_a_pruned_walk_keeps_the_budget_and_replays_its_choice(bench):
    asked = prompt(bench)
    pruning = bench.pruning(20)
    pruned = Walk(bench.subject, CAUSAL, pruning).prefill(asked)
    text = bench.subject.shape.text_before + bench.subject.shape.text_after
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


def test_speedups_are_medians_of_the_rounds_own_ratios_over_the_fastest_unpruned():
    times = {"unpruned, a": [8.0, 9.0, 10.0], "unpruned, b": [4.0, 6.0, 6.0], "20 kept": [2.0, 2.0, 3.0]}
    figures = figures_of(times, "20 kept", divide=1)
    assert figures["ms"] == 2.0
    assert figures["speedup"] == 2.0, "against b, whose ratios are 2, 3 and 2"
    assert figures_of(times, "unpruned, b", divide=2)["ms"] == 3.0


def test_logits_with_nan_are_infinitely_far_off():
    truth = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), truth) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, math.nan]), truth) == math.inf
