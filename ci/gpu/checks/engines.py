"""The embedded model: PyTorch on the device against PyTorch on the CPU, then its engines against PyTorch.

Engines are tried where their packages are installed: built, held against PyTorch, timed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ci.gpu.checks.decoder import DecoderBench
from ci.gpu.context import Context, NotRun, WrongResult
from ci.gpu.decoders import CAUSAL, MASKED
from ci.gpu.models import mini_model
from toprl_export.agent import Agent, AgentRecord, TrainingRecord, save_agent
from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.baselines.specs import baseline_plan
from toprl_export.pruning.plan import default_stage_layers, make_plan
from toprl_export.pruning.scorer import make_scorer
from toprl_export.tasks.registry import TASKS
from toprl_export.validation.gates import BudgetLimits, GateLimits
from toprl_export.validation.report import BudgetReport, Parity

TASK = "mini-colour"
BUDGETS = (192, 64)
LARGEST_LOGIT_ERROR = {"fp32": 1e-3, "fp16": 0.5, "bf16": 1.0}
"""Beyond rounding in that precision, with the engine's kept tokens replayed in PyTorch."""
PLUGIN = Path(__file__).parents[3] / "engines/flash_attention/build/lib/libtoprl_flash_attention_plugin.so"
"""Where ``engines/flash_attention/build.sh --tensorrt-root DIR`` puts it."""
MINI_BUDGETS = {192: (CAUSAL,), 128: (CAUSAL, MASKED), 64: (CAUSAL,)}
MINI_LOGIT_ERROR = 1e-3


def check_mini(context: Context) -> None:
    """Answers to real questions first, then times."""
    questions = 4 if context.quick else 32
    for budget in (None, max(MINI_BUDGETS), min(MINI_BUDGETS)):
        name = "unpruned" if budget is None else f"{budget} kept (FastV-P)"
        context.measure("agreement", name, partial(against_cpu, context.device, questions, budget))
    DecoderBench(context, mini_model(context.device), MINI_BUDGETS, (1, 4, 8)).run()


@torch.inference_mode()
def against_cpu(device: str, questions: int, budget: int | None) -> dict[str, float]:
    """Largest difference of a logit, and the share of equal first tokens, when the device keeps what the CPU kept.

    Raises:
        NotRun: the device is the CPU.
        WrongResult: a logit differs by more than 0.001.
    """
    if device == "cpu":
        raise NotRun("not run on a GPU")
    samples = list(TASKS.get("mini-colour").samples("held-out", 0, questions))
    prompts = [sample.question for sample in samples]
    adapter = load_model("mini", "cpu")
    pixels = adapter.fixed_frontend.pixels([sample.image for sample in samples])
    tokens = adapter.frontend.tokens(prompts)
    pruning = None
    if budget is not None:
        layers = adapter.shape.layers
        plan = baseline_plan("fastv-p", adapter.visual_tokens, layers, [budget], default_stage_layers(layers))
        pruning = Pruning.from_plan(plan, budget, make_scorer("fastv-p"))
    here, there = ReferenceRunner(adapter), ReferenceRunner(load_model("mini", device))
    wanted = here.prefill(tokens, here.encode_image(pixels), pruning)
    kept = [stage.to(device) for stage in wanted.kept] if pruning else None
    found = there.prefill(tokens, there.encode_image(pixels), pruning, forced_kept=kept)
    error = float((found.logits.cpu() - wanted.logits).abs().max())
    same = float((found.logits.cpu().argmax(-1) == wanted.logits.argmax(-1)).float().mean())
    if not error <= MINI_LOGIT_ERROR:
        raise WrongResult(f"logits differ by {error:.2g}", {"same_first_token": same})
    return {"logit_error": error, "same_first_token": same}


@dataclass(frozen=True)
class Target:
    """An engine, its precision, the execution provider, and whether TensorRT's attention is our plugin."""

    engine: str
    precision: str
    provider: str
    plugin: bool = False

    @property
    def name(self) -> str:
        """As it is reported: "onnx cuda fp32", "trt fp16", "trt fp16 plugin"."""
        parts = [self.engine, self.provider if self.engine == "onnx" else "", self.precision]
        return " ".join(part for part in (*parts, "plugin" if self.plugin else "") if part)

    @property
    def folder(self) -> str:
        """Of the bundle, which all of ONNX Runtime's providers share."""
        return f"{self.engine}-{self.precision}{'-plugin' if self.plugin else ''}"


def targets(device: str) -> tuple[Target, ...]:
    """The engines that are tried, in order; ONNX Runtime's TensorRT providers, which build for minutes, come last."""
    onnx = {provider: Target("onnx", "fp32", provider) for provider in ("cpu", "cuda", "tensorrt", "tensorrt-rtx")}
    if device == "cpu":
        return (onnx["cpu"],)
    native = (Target("trt", precision, "cuda") for precision in LARGEST_LOGIT_ERROR)
    plugin = (Target("trt", precision, "cuda", plugin=True) for precision in ("fp16", "bf16"))
    return (onnx["cuda"], *native, *plugin, onnx["cpu"], onnx["tensorrt"], onnx["tensorrt-rtx"])


def check_engines(context: Context) -> None:
    """Build and validate each; the agent is untrained, so accuracy means nothing."""
    agent = untrained_agent(context.scratch / "agent", load_model())
    for target in targets(context.device):
        bundle = context.scratch / target.folder
        if context.measure("build", target.name, partial(build_bundle, target, agent, bundle)):
            _measure(context, target, bundle)


def untrained_agent(directory: Path, adapter: LVLMAdapter) -> Path:
    """An agent with random weights and the default stages; its directory."""
    directory.mkdir()
    torch.manual_seed(0)
    plan = make_plan(adapter.visual_tokens, adapter.shape.layers, adapter.default_stage_layers, "actor", list(BUDGETS))
    config = ActorConfig(adapter.shape.hidden, stages=len(plan.stages))
    training = TrainingRecord("none", BUDGETS[0], 0, 0, 0.0, "ci/gpu.sh", {})
    record = AgentRecord(
        TASK, "untrained", adapter.model_id, adapter.fingerprint, plan=plan, actor=config, seed=0, training=training
    )
    save_agent(directory, Agent(record, Actor(config)), {"value": torch.zeros(1)})
    return directory


def build_bundle(target: Target, agent: Path, directory: Path) -> dict[str, float]:
    """Build, or find it built for another provider.

    Returns:
        seconds and size.

    Raises:
        NotRun: the engine is unknown, or something it needs is missing.
    """
    from toprl_engines.trt.options import TensorRTOptions
    from toprl_export.building import build
    from toprl_export.engine import ConfigurableEngine, get_engine

    if target.plugin and not PLUGIN.exists():
        raise NotRun("no plugin was built: engines/flash_attention/build.sh --tensorrt-root DIR")
    options = TensorRTOptions(plugin_library=PLUGIN if target.plugin else None) if target.engine == "trt" else None
    try:
        engine = get_engine(target.engine)
        if isinstance(engine, ConfigurableEngine) and options is not None:
            engine.resolve(options)
        if target.engine == "onnx":
            from toprl_engines.ort.providers import choose_provider

            choose_provider(target.provider)
    except UserError as error:
        raise NotRun(str(error)) from error
    start = time.monotonic()
    bundle = build(
        "mini", [agent], BUDGETS, target.engine, target.precision,
        options=options, output_dir=directory, command="ci/gpu.sh",
    )  # fmt: skip
    size = sum(file.size for file in bundle.manifest.files)
    return {"seconds": time.monotonic() - start, "mib": size / 2**20}


def _measure(context: Context, target: Target, bundle: Path) -> None:
    """Validate, then one case per budget in each table."""
    budgets: list[BudgetReport] = []

    def validate() -> None:
        budgets.extend(_validate(context, target, bundle))

    context.measure("validate", target.name, validate)
    for budget in budgets:
        name = f"{target.name}, {budget.budget_kept} kept"
        context.measure("parity", name, partial(parity_figures, budget.parity, target.precision), done=True)
        context.measure("speed", name, partial(speed_figures, budget), done=True)


def _validate(context: Context, target: Target, bundle: Path) -> tuple[BudgetReport, ...]:
    from toprl_export.validation.bench import ValidationOptions
    from toprl_export.validation.runner import validate

    options = ValidationOptions(
        limit=6 if context.quick else 48,
        parity_questions=6 if context.quick else 24,
        iterations=3 if context.quick else 20,
        batch=4,
        throughput_batches=(1, 4),
        device="cpu" if target.provider == "cpu" else "cuda",
        provider=target.provider,
        measure_memory=False,
    )
    nothing = GateLimits(min_retention=BudgetLimits(), max_logit_error=None, min_overlap=None)
    report_dir = bundle.with_name(f"{target.name.replace(' ', '-')}-report")
    return validate(bundle, options=options, limits=nothing, report_dir=report_dir, command="ci/gpu.sh").budgets


def parity_figures(parity: Parity, precision: str) -> dict[str, float]:
    """How closely the engine follows PyTorch.

    Raises:
        WrongResult: a logit is NaN or infinite, or further off than rounding explains.
    """
    figures = {
        "kept_overlap_worst_stage": min(parity.kept_overlap_per_stage),
        "greedy_agreement": parity.greedy_agreement,
    }
    if parity.logit_error_forced is None:
        raise WrongResult("a logit is not finite", figures)
    figures = {"logit_error": parity.logit_error_forced, **figures}
    if parity.logit_error_forced > LARGEST_LOGIT_ERROR[precision]:
        raise WrongResult(f"logits differ by {parity.logit_error_forced:.2g}", figures)
    return figures


def speed_figures(budget: BudgetReport) -> dict[str, float]:
    """Medians and ratios of one request, and requests per second at the largest batch."""
    latency, speedup, largest = budget.latency_ms.engine, budget.speedup, budget.throughput[-1]
    return {
        "vision_ms": latency.vision,
        "prefill_ms": latency.prefill,
        "decode_ms_per_token": latency.decode_per_token,
        "prefill_vs_pytorch": speedup.prefill_vs_reference,
        "prefill_vs_engine_unpruned": speedup.prefill_vs_engine_unpruned,
        "total_vs_pytorch": speedup.total_vs_reference,
        f"requests_per_second_at_batch_{largest.batch}": largest.engine,
    }
