"""Building with a fake engine: what a bundle is bound to, when a rebuild is needless, what failures leave."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.support import fake_engine as fakes
from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import VISUAL_TOKENS, tiny_adapter
from toprl_export import building
from toprl_export.agent import load_agent
from toprl_export.building import build, merge_plans, prepare
from toprl_export.bundle import Bundle, load_bundle
from toprl_export.engine import BuildRequest, BuildResult, EngineOptions
from toprl_export.errors import UserError
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.mini.processor import mini_processor
from toprl_export.pruning.baselines.specs import baseline_plan
from toprl_export.pruning.plan import PruningPlan, Schedule, make_plan, solve_schedule
from toprl_export.runtime.frontend import FixedFrontend


@pytest.fixture(scope="module")
def adapter() -> LlavaAdapter:
    return tiny_adapter()


@pytest.fixture
def agent(adapter: LlavaAdapter, tmp_path: Path) -> Callable[..., Path]:
    """``agent(name, …)`` saves an agent of the tiny model as ``agents/name``."""
    return lambda name, **settings: save_tiny_agent(tmp_path / "agents" / name, adapter, **settings)


@pytest.fixture(autouse=True)
def fake_world(fake_engine: None, adapter: LlavaAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "load_model", lambda _: adapter)


def built(directory: Path, *agents: Path, **settings) -> Bundle:
    return build("tiny", agents, engine="fake", output_dir=directory / "bundle", **settings)


def test_a_bundle_is_bound_to_model_agents_plan_and_tools(agent, adapter: LlavaAdapter, tmp_path: Path):
    directories = [agent("exist"), agent("count", task="mini-count", seed=1)]
    bundle = built(tmp_path, *directories, budgets_kept=(12, 10), command="toprl-export build …")
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert manifest == bundle.manifest
    assert (manifest.model.fingerprint, manifest.model.shape) == (adapter.fingerprint, adapter.shape)
    assert (manifest.model.max_length, manifest.model.end_tokens) == (256, adapter.end_tokens)
    assert [entry.fingerprint for entry in manifest.agents] == [load_agent(d).fingerprint for d in directories]
    assert manifest.tasks == ("mini-exist", "mini-count")
    assert manifest.plan.schedule(12) == load_agent(directories[0]).record.plan.schedule(12)
    assert manifest.plan.schedule(10) == solve_schedule(VISUAL_TOKENS, 4, (0, 2), 10)
    assert manifest.engine.toolchain == fakes.TOOLCHAIN
    assert manifest.build_command == "toprl-export build …"
    written = {path.relative_to(bundle.dir).as_posix() for path in bundle.dir.rglob("*") if path.is_file()}
    assert written == {file.path for file in manifest.files} | {"manifest.json"}
    config = AutoConfig.from_pretrained(bundle.path("config"))
    assert config.to_dict() | {"_name_or_path": ""} == adapter.model.config.to_dict()


def test_the_agents_in_a_bundle_are_those_that_were_given(agent, tmp_path: Path):
    source = agent("exist")
    bundle = built(tmp_path, source)
    copied = load_agent(bundle.agent_dir("mini-exist"))
    assert copied.fingerprint == load_agent(source).fingerprint
    assert copied.record == load_agent(source).record


def test_a_rebuild_from_the_same_inputs_is_needless_and_keeps_the_stamp(agent, tmp_path: Path):
    source = agent("exist")
    built(tmp_path, source)
    fakes.stamp(tmp_path / "bundle", "mini-exist", "e" * 64, "passed")
    again = built(tmp_path, source, command="other")
    assert fakes.FakeEngine.builds == 1
    assert [stamp.verdict for stamp in again.manifest.validations] == ["passed"]
    built(tmp_path, source, overwrite=True)
    assert fakes.FakeEngine.builds == 1


def test_every_input_makes_a_rebuild_needed(agent, tmp_path: Path):
    source = agent("exist")
    built(tmp_path, source)
    for agents, settings in (
        ([agent("retrained", seed=5)], {}),
        ([source], {"budgets_kept": (8,)}),
        ([source], {"precision": "fp16"}),
        ([source], {"static_k": True, "budgets_kept": (12,)}),
        ([source, agent("count", task="mini-count")], {}),
    ):
        with pytest.raises(UserError, match="already holds an earlier result: add --overwrite"):
            built(tmp_path, *agents, **settings)
    assert fakes.FakeEngine.builds == 1


def test_another_model_or_prompt_makes_a_rebuild_needed(agent, adapter: LlavaAdapter, tmp_path: Path):
    source = agent("exist")
    built(tmp_path, source)
    prepared = prepare("tiny", [source], None, "fake", "fp32")
    same, prompted, worded, eased = (copy.copy(adapter) for _ in range(4))
    for other, processor in ((prompted, mini_processor(40, 8)), (worded, mini_processor(40, 8))):
        other.frontend = FixedFrontend(processor, adapter.visual_tokens, *adapter.image_size)
    prompted.frontend.processor.chat_template += " "
    worded.tokenizer.add_tokens(["unheard-of"])
    eased.model = copy.copy(adapter.model)
    eased.model.config = copy.deepcopy(adapter.model.config)
    eased.model.config.text_config.rms_norm_eps *= 10

    def current(other: LlavaAdapter) -> bool:
        request = replace(prepared.request, adapter=other)
        return building.up_to_date(replace(prepared, request=request), tmp_path / "bundle") is not None

    assert [current(other) for other in (same, prompted, worded, eased, tiny_adapter(seed=3))] == [True, *[False] * 4]


def test_another_tool_version_makes_a_rebuild_needed(agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = agent("exist")
    built(tmp_path, source)
    prepared = prepare("tiny", [source], None, "fake", "fp32")
    assert building.up_to_date(prepared, tmp_path / "bundle")
    real = building.metadata.version
    monkeypatch.setattr(building.metadata, "version", lambda name: "99" if name == "numpy" else real(name))
    assert building.up_to_date(prepared, tmp_path / "bundle") is None


def test_a_damaged_bundle_is_built_again(agent, tmp_path: Path):
    source = agent("exist")
    built(tmp_path, source)
    (tmp_path / "bundle" / "prefill.onnx").write_text("damaged")
    with pytest.raises(UserError, match="add --overwrite"):
        built(tmp_path, source)
    built(tmp_path, source, overwrite=True)
    load_bundle(tmp_path / "bundle")
    assert fakes.FakeEngine.builds == 2


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), UserError),
        (UserError("this engine cannot"), UserError),
    ],
)
def test_failures_leave_the_earlier_bundle_and_nothing_else(
    agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, seen: type[BaseException]
):
    source = agent("exist")
    built(tmp_path, source)
    before = load_bundle(tmp_path / "bundle").manifest

    def failing(self, request: BuildRequest, directory: Path) -> BuildResult:
        (directory / "prefill.onnx").write_text("half")
        raise failure

    monkeypatch.setattr(fakes.FakeEngine, "build", failing)
    with pytest.raises(seen):
        built(tmp_path, source, precision="fp16", overwrite=True)
    assert load_bundle(tmp_path / "bundle").manifest == before
    assert sorted(os.listdir(tmp_path)) == ["agents", "bundle"]


def test_an_engine_must_list_what_it_writes(agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def careless(self, request: BuildRequest, directory: Path) -> BuildResult:
        (directory / "prefill.onnx").write_text("x")
        (directory / "forgotten.bin").write_text("x")
        return BuildResult((("prefill", "prefill.onnx"),), {}, 23)

    monkeypatch.setattr(fakes.FakeEngine, "build", careless)
    with pytest.raises(RuntimeError, match=r"wrote \['forgotten.bin'\] and did not list it"):
        built(tmp_path, agent("exist"))


def test_a_place_that_holds_something_else_is_refused_before_anything_is_loaded(tmp_path: Path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "photo.jpg").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        built(tmp_path, tmp_path / "no-such-agent", overwrite=True)
    assert os.listdir(tmp_path / "bundle") == ["photo.jpg"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"budgets_kept": (VISUAL_TOKENS + 1,)}, str(VISUAL_TOKENS)),
        ({"budgets_kept": (0,)}, "0"),
        ({"budgets_kept": (8, 8)}, "each once"),
        ({"precision": "fp8"}, "known: fp32, fp16, bf16"),
        ({"budgets_kept": (12, 8), "static_k": True}, "--static-k bakes in one budget, not several (8, 12)"),
    ],
)
def test_impossible_settings(agent, tmp_path: Path, settings: dict, expected: str):
    with pytest.raises(UserError) as caught:
        built(tmp_path, agent("exist"), **settings)
    assert expected in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_agents_that_do_not_go_together(agent, tmp_path: Path):
    exist = agent("exist")
    for other, expected in (
        (agent("again"), "two agents are for the task mini-exist"),
        (agent("deep", task="mini-count", stage_layers=(1, 2)), "have other stages"),
        (agent("wide", task="mini-count", hidden_size=16), "differ in size"),
    ):
        with pytest.raises(UserError, match=expected):
            built(tmp_path, exist, other)
    with pytest.raises(UserError, match="no agent was given"):
        built(tmp_path)
    with pytest.raises(UserError, match="no agent directory"):
        built(tmp_path, tmp_path)


def test_a_baseline_in_the_place_of_agents(adapter: LlavaAdapter, tmp_path: Path):
    bundle = built(tmp_path, baseline="fastv-p", budgets_kept=(12, 8))
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert (manifest.baseline, manifest.agents, manifest.tasks) == ("fastv-p", (), ())
    assert manifest.plan == baseline_plan("fastv-p", VISUAL_TOKENS, 4, (12, 8), adapter.default_stage_layers)
    assert not (bundle.dir / "agents").exists()
    built(tmp_path, baseline="fastv-p", budgets_kept=(12, 8))
    assert fakes.FakeEngine.builds == 1
    with pytest.raises(UserError, match="already holds an earlier result"):
        built(tmp_path, baseline="uniform", budgets_kept=(12, 8))


def test_a_baseline_prunes_where_it_is_told_unless_its_paper_says_where(tmp_path: Path):
    bundle = built(tmp_path, baseline="fastv-p", budgets_kept=(12,), stage_layers=(0, 3))
    assert bundle.manifest.plan.stage_layers == (0, 3)
    with pytest.raises(UserError, match="visionzip prunes before layers 0 by itself: leave --stage-layers out"):
        built(tmp_path, baseline="visionzip", budgets_kept=(12,), stage_layers=(0, 3), overwrite=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"baseline": "random"}, "random runs in PyTorch only, where `compare` measures it: choose one of uniform"),
        ({"baseline": "oracle"}, "oracle runs in PyTorch only, where `compare` measures it: choose one of uniform"),
        ({"baseline": "fastvp"}, "unknown baseline 'fastvp'; did you mean 'fastv-p'?"),
        ({"baseline": "uniform"}, "a budget of 64 tokens kept cannot be met"),  # train's default, and n is 25
        ({"baseline": "uniform", "budgets_kept": (12,), "stage_layers": (2, 4)}, "ascending within 0 to 3"),
        ({}, "no agent was given"),
    ],
)
def test_impossible_baselines(tmp_path: Path, settings: dict, expected: str):
    with pytest.raises(UserError) as caught:
        built(tmp_path, **settings)
    assert expected in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_agents_and_a_baseline_do_not_mix(agent, tmp_path: Path):
    source = agent("exist")
    with pytest.raises(UserError, match="a bundle is built from one of the two"):
        built(tmp_path, source, baseline="uniform")
    with pytest.raises(UserError, match="agents bring their own: leave --stage-layers out"):
        built(tmp_path, source, stage_layers=(0, 1))


def test_a_task_name_cannot_leave_the_bundle(agent, tmp_path: Path):
    with pytest.raises(UserError, match="leaves the bundle"):
        built(tmp_path, agent("evil", task="../../evil"))


def test_an_agent_of_another_model(tmp_path: Path):
    other = tiny_adapter(seed=3)
    with pytest.raises(UserError, match="was trained on other weights"):
        built(tmp_path, save_tiny_agent(tmp_path / "agents" / "exist", other))


def test_plans_merge_by_budget(agent, adapter: LlavaAdapter):
    """An agent's own schedule (a learned one, say) wins over a solved one; two different ones are refused."""
    exist = load_agent(agent("exist", budgets=(12,)))
    learned = Schedule(10, (16, 4), 10.0)
    plan = PruningPlan(VISUAL_TOKENS, 4, exist.record.plan.stages, (learned,))
    count = load_agent(agent("count", task="mini-count", plan=plan, budgets=(10,)))
    assert learned != solve_schedule(VISUAL_TOKENS, 4, (0, 2), 10)
    merged = merge_plans([exist, count], None)
    assert merged.schedules == (exist.record.plan.schedule(12), learned)
    assert merge_plans([exist, count], (10,)).schedules == (learned,)
    rival = PruningPlan(VISUAL_TOKENS, 4, plan.stages, (Schedule(10, (12, 8), 10.0),))
    other = load_agent(agent("read", task="mini-read", plan=rival, budgets=(10,)))
    with pytest.raises(UserError, match=r"keep \(16, 4\) and \(12, 8\) tokens at budget 10"):
        merge_plans([count, other], None)


def test_a_budget_that_no_agent_has_falls_as_their_plans_do(agent):
    plans = [make_plan(VISUAL_TOKENS, 4, (0, 2), "actor", (12,), decay) for decay in (0.3, 0.9)]
    steep, flat = (load_agent(agent(f"a{i}", task=f"t{i}", plan=plan, budgets=(12,))) for i, plan in enumerate(plans))
    assert merge_plans([steep], (8,)).schedules == (solve_schedule(VISUAL_TOKENS, 4, (0, 2), 8, 0.3),)
    assert merge_plans([steep], (8,)).decay == 0.3
    with pytest.raises(UserError, match="tokens at budget 8: train them alike or build two bundles"):
        merge_plans([steep, flat], (8,))


def test_expected_weight_bytes(agent, adapter: LlavaAdapter):
    source = agent("exist")
    weights = {id(p): p.numel() for p in adapter.model.parameters()}
    actor = sum(tensor.numel() for tensor in load_agent(source).actor.state_dict().values())
    full = prepare("tiny", [source], None, "fake", "fp32").weight_bytes
    half = prepare("tiny", [source], None, "fake", "bf16").weight_bytes
    assert full == 4 * (sum(weights.values()) + actor)
    assert half == 2 * sum(weights.values()) + 4 * actor
    assert all(parameter.dtype == torch.float32 for parameter in adapter.model.parameters())


@dataclass(frozen=True)
class Tuning:
    """Options that only `TunableEngine` knows."""

    level: int = 1
    host: str = ""

    @property
    def given_flags(self) -> tuple[str, ...]:
        return () if self.level == 1 else ("--level",)

    @property
    def identity(self) -> dict[str, Any]:
        return {"level": self.level, "host": self.host}


class TunableEngine(fakes.FakeEngine):
    """Chooses the host by itself, and writes the level into the manifest."""

    name = "tunable"

    def resolve(self, options: EngineOptions | None) -> EngineOptions:
        chosen = Tuning() if options is None else options
        assert isinstance(chosen, Tuning)
        return replace(chosen, host="here")

    def preview(self, request: BuildRequest) -> dict[str, Any]:
        return {}

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        assert isinstance(request.options, Tuning)
        return replace(super().build(request, directory), details={"level": request.options.level, "on": ["here"]})


def test_an_engines_own_options_reach_it_and_its_details_the_manifest(agent, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(building, "get_engine", lambda name: TunableEngine())
    monkeypatch.setattr(TunableEngine, "builds", 0)
    source = agent("exist")
    assert built(tmp_path, source).manifest.engine.details == {"level": 1, "on": ["here"]}
    assert load_bundle(tmp_path / "bundle").manifest.engine.details == {"level": 1, "on": ["here"]}
    # What the engine would have chosen anyway is no other build; another level is.
    built(tmp_path, source, options=Tuning(host="here"))
    assert TunableEngine.builds == 1
    assert built(tmp_path, source, options=Tuning(2), overwrite=True).manifest.engine.details["level"] == 2
    assert TunableEngine.builds == 2


def test_an_engine_without_options_refuses_those_of_another(agent, tmp_path: Path):
    source = agent("exist")
    with pytest.raises(
        UserError, match="the engine 'fake' does not know --level: leave that out, or choose the engine"
    ):
        built(tmp_path, source, options=Tuning(2))
    built(tmp_path, source, options=Tuning())
