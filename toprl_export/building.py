"""Building a bundle: model and agents (or a baseline) in, engine files, processor, agents and manifest out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from toprl_export.agent import ACTOR_FILE, AGENT_FILE, Agent, load_agent
from toprl_export.bundle import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PROCESSOR_DIR,
    AgentEntry,
    Bundle,
    EngineEntry,
    Manifest,
    ModelEntry,
    file_entries,
    load_bundle,
    write_manifest,
)
from toprl_export.engine import (
    PRECISIONS,
    BuildRequest,
    BuildResult,
    ConfigurableEngine,
    Engine,
    EngineOptions,
    get_engine,
)
from toprl_export.errors import UserError
from toprl_export.fields import check_types
from toprl_export.files import write_text_atomic
from toprl_export.manifest import check_relative
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.agreement import require_attention
from toprl_export.models.load import load_model
from toprl_export.models.shape import DecoderShape
from toprl_export.places import check_replaceable, check_writable, resolved, staged_directory, taken
from toprl_export.pruning.baselines.specs import BUILDABLE_BASELINES, baseline_plan, baseline_spec
from toprl_export.pruning.plan import SHARE_UNITS, PruningPlan, Schedule, budget_count
from toprl_export.registry import unknown_name
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT

DEFAULT_SHARES_KEPT = (0.33, 0.11)
"""Budgets of a baseline where pictures differ in their number of visual tokens."""
BYTES_PER_WEIGHT = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class PreparedBuild:
    """A build whose inputs are loaded and fit together; nothing is written yet."""

    engine: Engine
    request: BuildRequest
    agent_dirs: tuple[Path, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights of model and actors will take: those of the actors stay in fp32."""
        per_weight = BYTES_PER_WEIGHT[self.request.precision]
        model: int = sum(weight.numel() for weight in self.request.adapter.model.parameters())
        actors = sum(weight.numel() for agent in self.request.agents for weight in agent.actor.parameters())
        return model * per_weight + actors * BYTES_PER_WEIGHT["fp32"]


_ARGUMENTS: Mapping[str, Any] = {
    "model": str,
    "agents": Sequence[Path],
    "budgets_kept": Sequence[int | float] | None,
    "engine": str,
    "precision": str,
    "baseline": str | None,
    "stage_layers": Sequence[int] | None,
    "static_k": bool,
    "output_dir": Path,
    "overwrite": bool,
    "command": str,
}
"""Types of `build`'s plain arguments."""


def build(
    model: str,
    agents: Sequence[Path] = (),
    budgets_kept: Sequence[int | float] | None = None,
    engine: str = "onnx",
    precision: str = "fp32",
    *,
    baseline: str | None = None,
    stage_layers: Sequence[int] | None = None,
    static_k: bool = False,
    options: EngineOptions | None = None,
    output_dir: Path,
    overwrite: bool = False,
    command: str = "python",
) -> Bundle:
    """Build a bundle, or return the one in ``output_dir`` when it was built from identical inputs.

    Args:
        model: the reference model's name, Hugging Face id or directory.
        agents: directories of agents that share stages; each serves every budget. None with a baseline.
        budgets_kept: average visual tokens kept; by default all that the agents' plans know, or those that ``train``
            takes by default.
        engine: a registered engine's name.
        precision: of the weights: fp32, fp16 or bf16.
        baseline: name of an untrained method to build in the place of agents; it serves every task.
        stage_layers: where a baseline without stages of its own prunes; by default where agents do.
        static_k: bake the one budget into the graph.
        options: the engine's own options; None for its defaults, and for an engine without any.
        output_dir: where the bundle goes; written whole or not at all.
        overwrite: replace an earlier bundle of other inputs.
        command: the command line, for the manifest.

    Raises:
        UserError: a name is unknown, there are agents and a baseline or neither, agents do not fit the model or each
            other, a baseline cannot be built, a budget cannot be met, the engine cannot build this, or the output
            directory holds something else.
    """
    check_types("build", _ARGUMENTS, locals())
    check_place(output_dir)
    with taken(output_dir):
        prepared = prepare(
            model,
            agents,
            budgets_kept,
            engine,
            precision,
            static_k,
            baseline=baseline,
            stage_layers=stage_layers,
            options=options,
        )
        return up_to_date(prepared, output_dir) or write_bundle(prepared, output_dir, overwrite, command)


def check_place(output_dir: Path) -> None:
    """Refuse a directory that no bundle can be written to, before anything is loaded.

    Raises:
        UserError: it holds something else, or see `toprl_export.places.check_writable`.
    """
    check_replaceable(resolved(output_dir), overwrite=True, marker=MANIFEST_NAME)
    check_writable(output_dir)


def prepare(
    model: str,
    agents: Sequence[Path],
    budgets_kept: Sequence[int | float] | None,
    engine: str,
    precision: str,
    static_k: bool = False,
    *,
    baseline: str | None = None,
    stage_layers: Sequence[int] | None = None,
    options: EngineOptions | None = None,
) -> PreparedBuild:
    """Load everything a build needs and check that it fits together; see :func:`build`."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    _check_source(agents, baseline, stage_layers)
    chosen_engine = get_engine(engine)
    own_options = _options_of(chosen_engine, options)
    loaded = tuple(load_agent(directory) for directory in agents)
    _check_together(loaded)
    adapter: LVLMAdapter
    if baseline is None:
        plan = merge_plans(loaded, budgets_kept)
        adapter = load_model(model)
    else:
        adapter = load_model(model)
        plan = _plan_of_baseline(baseline, adapter, budgets_kept, stage_layers)
    for agent in loaded:
        agent.check_fits(adapter)
    request = BuildRequest(adapter, loaded, plan, precision, static_k=static_k, baseline=baseline, options=own_options)
    if plan.shares:
        _check_varying(request)
    require_attention(adapter, request.scorer.needs)
    chosen_engine.check_request(request)
    return PreparedBuild(chosen_engine, request, tuple(agents))


def up_to_date(prepared: PreparedBuild, output_dir: Path) -> Bundle | None:
    """The bundle in ``output_dir`` if it is whole and was built from the same inputs with the same tools."""
    if not (output_dir / MANIFEST_NAME).is_file():
        return None
    try:
        bundle = load_bundle(output_dir)
    except UserError:
        # A damaged or older bundle is no cache hit; writing over it is refused or allowed as for any other.
        return None
    installed = _installed_versions(bundle.manifest.engine.toolchain)
    return bundle if bundle.manifest.input_digest == input_digest(prepared, installed) else None


def write_bundle(prepared: PreparedBuild, output_dir: Path, overwrite: bool, command: str) -> Bundle:
    """Build into a temporary directory that takes the place of ``output_dir`` when it is complete.

    Raises:
        UserError: see :func:`build`; or the disk is full.
    """
    check_writable(output_dir, needed_bytes=prepared.weight_bytes)
    with staged_directory(output_dir, overwrite, MANIFEST_NAME) as staging:
        earlier = output_dir.resolve() if (output_dir / MANIFEST_NAME).is_file() else None
        result = prepared.engine.build(replace(prepared.request, earlier=earlier), staging)
        adapter = prepared.request.adapter
        write_text_atomic(staging / CONFIG_NAME, adapter.model.config.to_json_string())
        processor = adapter.frontend.save(staging / PROCESSOR_DIR)
        own_files = [("config", CONFIG_NAME), *(("processor", f"{PROCESSOR_DIR}/{name}") for name in processor)]
        own_files += _copy_agents(prepared, staging)
        write_manifest(staging, _manifest(prepared, result, staging, own_files, command))
    return load_bundle(output_dir, verify=False)


def merge_plans(agents: Sequence[Agent], budgets_kept: Sequence[int | float] | None) -> PruningPlan:
    """One plan for agents that share stages: their own schedules where they have one, solved ones elsewhere.

    The merged plan states the first agent's decay; its schedules are complete, so nothing is solved by it again.

    Raises:
        UserError: agents disagree on stages or on a budget's keep counts, or a budget cannot be met.
    """
    first = agents[0].record.plan
    for agent in agents[1:]:
        plan = agent.record.plan
        if (plan.stages, plan.visual_tokens, plan.decoder_layers) != (
            first.stages,
            first.visual_tokens,
            first.decoder_layers,
        ):
            raise UserError(
                f"the agents for {agents[0].record.task} and {agent.record.task} have other stages "
                f"({_stages(first)}; {_stages(plan)}): train them alike or build two bundles"
            )
    plans = [agent.record.plan for agent in agents]
    known = dict.fromkeys(schedule.budget_kept for plan in plans for schedule in plan.schedules)
    wanted = tuple(known) if budgets_kept is None else [budget_count(one, first.visual_tokens) for one in budgets_kept]
    return replace(first, schedules=tuple(_schedule(plans, budget) for budget in wanted))


def input_digest(prepared: PreparedBuild, toolchain: dict[str, str]) -> str:
    """SHA-256 over all that the content of a bundle depends on."""
    request, adapter = prepared.request, prepared.request.adapter
    inputs = {
        "toprl_export": metadata.version("toprl-export"),
        "model": [adapter.model_id, adapter.revision, adapter.fingerprint],
        "config": _text_digest(adapter.model.config.to_json_string()),
        "frontend": adapter.frontend.fingerprint,
        "end_tokens": adapter.end_tokens,
        "max_length": adapter.max_length,
        "agents": [[agent.record.task, agent.fingerprint] for agent in request.agents],
        "baseline": request.baseline,
        "plan": request.plan.to_json(),
        "engine": prepared.engine.name,
        "precision": request.precision,
        "static_k": request.static_k,
        "options": None if request.options is None else request.options.identity,
        "toolchain": toolchain,
    }
    return _text_digest(json.dumps(inputs, sort_keys=True))


def _check_source(agents: Sequence[Path], baseline: str | None, stage_layers: Sequence[int] | None) -> None:
    if baseline is None:
        if not agents:
            raise UserError("no agent was given: give at least one directory that `toprl-export train` wrote")
        if stage_layers is not None:
            raise UserError("stage layers were given, but agents bring their own: leave --stage-layers out")
        return
    if agents:
        raise UserError(f"agents and the baseline {baseline} were given: a bundle is built from one of the two")
    spec = baseline_spec(baseline)
    if not spec.buildable:
        raise UserError(
            f"the baseline {baseline} runs in PyTorch only, where `compare` measures it: "
            f"choose one of {', '.join(BUILDABLE_BASELINES)}"
        )


def _options_of(engine: Engine, options: EngineOptions | None) -> EngineOptions | None:
    """The engine's own, complete; None for an engine that has none."""
    if isinstance(engine, ConfigurableEngine):
        return engine.resolve(options)
    if options is not None and options.given_flags:
        raise UserError(
            f"the engine {engine.name!r} does not know {', '.join(options.given_flags)}: leave that out, or choose the "
            "engine that it is for"
        )
    return None


def _plan_of_baseline(
    baseline: str, adapter: LVLMAdapter, budgets_kept: Sequence[int | float] | None, stage_layers: Sequence[int] | None
) -> PruningPlan:
    wanted = adapter.default_stage_layers if stage_layers is None else tuple(stage_layers)
    fixed = adapter.frontend.fixed
    n = None if fixed is None else len(fixed.rows)
    default = DEFAULT_SHARES_KEPT if n is None else DEFAULT_BUDGETS_KEPT
    budgets = [budget_count(budget, n) for budget in (default if budgets_kept is None else budgets_kept)]
    plan = baseline_plan(baseline, n or SHARE_UNITS, adapter.shape.layers, budgets, wanted)
    plan = replace(plan, shares=n is None)
    if stage_layers is not None and plan.stage_layers != wanted:
        places = ", ".join(map(str, plan.stage_layers))
        raise UserError(f"the baseline {baseline} prunes before layers {places} by itself: leave --stage-layers out")
    return plan


def _check_varying(request: BuildRequest) -> None:
    """Refuse what needs one number of visual tokens, of a model whose pictures differ in it."""
    if request.static_k:
        raise UserError(
            "--static-k bakes one keep count into the graph, but this model's pictures differ in their number of "
            "visual tokens: leave it out"
        )
    if request.scorer.needs.saliency:
        raise UserError(
            f"the baseline {request.baseline} scores by the vision tower's attention, which is not known of the family "
            f"{request.adapter.family}: choose another baseline"
        )


def _check_together(agents: Sequence[Agent]) -> None:
    tasks = [agent.record.task for agent in agents]
    for position, agent in enumerate(agents):
        check_relative(f"agents/{agent.record.task}")
        if agent.record.task in tasks[:position]:
            raise UserError(f"two agents are for the task {agent.record.task}: give one agent per task")
        if agent.record.actor != agents[0].record.actor:
            raise UserError(
                f"the agents for {tasks[0]} and {agent.record.task} differ in size ({agents[0].record.actor}; "
                f"{agent.record.actor}): train them alike or build two bundles"
            )


def _schedule(plans: Sequence[PruningPlan], budget_kept: int) -> Schedule:
    having = [plan for plan in plans if plan.own_schedule(budget_kept)]
    found = list(dict.fromkeys(plan.schedule_or_solved(budget_kept) for plan in having or plans))
    if len(found) > 1:
        raise UserError(
            f"the agents keep {found[0].keep_counts} and {found[1].keep_counts} tokens at budget {budget_kept}: "
            "train them alike or build two bundles"
        )
    return found[0]


def _stages(plan: PruningPlan) -> str:
    return ", ".join(f"{stage.site} {stage.scorer}" for stage in plan.stages)


def _copy_agents(prepared: PreparedBuild, staging: Path) -> list[tuple[str, str]]:
    copied = []
    for agent, source in zip(prepared.request.agents, prepared.agent_dirs, strict=True):
        (staging / "agents" / agent.record.task).mkdir(parents=True)
        for name in (AGENT_FILE, ACTOR_FILE):
            path = f"agents/{agent.record.task}/{name}"
            shutil.copyfile(source / name, staging / path)
            copied.append(("agent", path))
    return copied


def _manifest(
    prepared: PreparedBuild, result: BuildResult, staging: Path, own_files: list[tuple[str, str]], command: str
) -> Manifest:
    request, adapter = prepared.request, prepared.request.adapter
    files = file_entries(staging, [*result.files, *own_files])
    unlisted = sorted(_written(staging) - {file.path for file in files})
    if unlisted:
        raise RuntimeError(f"engine {prepared.engine.name} wrote {unlisted} and did not list it")
    return Manifest(
        toprl_export=metadata.version("toprl-export"),
        model=_model_entry(adapter),
        agents=tuple(
            AgentEntry(agent.record.task, agent.fingerprint, agent.record.method, index)
            for index, agent in enumerate(request.agents)
        ),
        baseline=request.baseline,
        plan=request.plan,
        engine=EngineEntry(
            prepared.engine.name,
            request.precision,
            result.opset,
            result.toolchain,
            result.details,
        ),
        files=files,
        build_command=command,
        input_digest=input_digest(prepared, result.toolchain),
    )


def _model_entry(adapter: LVLMAdapter) -> ModelEntry:
    return ModelEntry(
        id=adapter.model_id,
        revision=adapter.revision,
        fingerprint=adapter.fingerprint,
        family=adapter.family,
        frontend=adapter.frontend.settings,
        max_length=adapter.max_length,
        end_tokens=adapter.end_tokens,
        shape=DecoderShape(**asdict(adapter.shape)),
    )


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _written(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def _installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Their versions; one that is not installed has the empty version, which no toolchain has."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = ""
    return versions
