"""The engines check: which engines are tried, by whom they are pruned, and what parity is refused."""

from __future__ import annotations

import pytest
import torch

from ci.gpu.checks import engines
from ci.gpu.checks.engines import LARGEST_LOGIT_ERROR, Target, build_bundle, parity_figures, targets, untrained_agent
from ci.gpu.context import NotRun, WrongResult
from ci.gpu.plan import GOALS
from tests.support.tiny_llava import tiny_adapter
from toprl_export.agent import load_agent
from toprl_export.registry import Registry
from toprl_export.validation.report import Parity


def test_targets_have_names_of_their_own_that_the_goals_know():
    names = [target.name for target in targets("cuda")]
    assert len(names) == len(set(names))
    assert {"onnx cuda fp32", "trt fp32", "trt fp16 plugin"} <= set(names)
    wanted = [goal.case for goal in GOALS if goal.check == "engines"]
    assert wanted
    assert set(wanted) <= set(names)
    assert [target.name for target in targets("cpu")] == ["onnx cpu fp32"]


def test_providers_share_a_bundle_and_the_plugin_has_one_of_its_own():
    onnx = {target.folder for target in targets("cuda") if target.engine == "onnx"}
    assert len(onnx) == 1
    assert Target("trt", "fp16", "cuda").folder != Target("trt", "fp16", "cuda", plugin=True).folder


def test_the_untrained_agent_fits_its_model(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "BUDGETS", (12, 6))
    adapter = tiny_adapter()
    agent = load_agent(untrained_agent(tmp_path / "agent", adapter))
    agent.check_fits(adapter)
    assert [schedule.budget_kept for schedule in agent.record.plan.schedules] == [6, 12]
    assert all(torch.isfinite(weight).all() for weight in agent.actor.parameters())


def test_an_engine_that_is_not_there_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("toprl_export.engine.ENGINES", Registry("engine", {}))
    with pytest.raises(NotRun, match="unknown engine 'trt'"):
        build_bundle(Target("trt", "fp16", "cuda"), tmp_path, tmp_path / "bundle")


def test_a_provider_that_is_not_installed_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(NotRun, match="'cuda' is not available"):
        build_bundle(Target("onnx", "fp32", "cuda"), tmp_path, tmp_path / "bundle")


@pytest.mark.parametrize("precision", LARGEST_LOGIT_ERROR)
def test_logits_beyond_rounding_are_refused(precision):
    limit = LARGEST_LOGIT_ERROR[precision]

    def parity(forced: float | None) -> Parity:
        return Parity((1.0, 0.75), 0.5, forced, 0.9, 24)

    figures = parity_figures(parity(limit), precision)
    assert figures == {"logit_error": limit, "kept_overlap_worst_stage": 0.75, "greedy_agreement": 0.9}
    with pytest.raises(WrongResult, match="logits differ"):
        parity_figures(parity(limit * 1.01), precision)
    with pytest.raises(WrongResult, match="finite"):
        parity_figures(parity(None), precision)
