"""Everything that validation compares, opened once: the stock model, the scorer in PyTorch, and the bundle's engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from toprl_export.agent import load_agent
from toprl_export.bundle import Bundle, load_bundle
from toprl_export.cores import check_parallel, usable_cores
from toprl_export.engine import Engine, SessionOptions, get_engine
from toprl_export.errors import UserError
from toprl_export.fields import check_field_types
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.controls import RandomScorer
from toprl_export.pruning.scorer import make_scorer
from toprl_export.runtime.answer_length import prompt_room
from toprl_export.runtime.session import largest_batch
from toprl_export.seeding import derive_seed
from toprl_export.tasks.registry import TASKS
from toprl_export.validation.answers import EncodedQuestions, PrunedRuns, QuestionBatch
from toprl_export.validation.costs import ENGINE_UNPRUNED, REFERENCE, MeasuredSession
from toprl_export.validation.stock import StockSession

if TYPE_CHECKING:
    from toprl_export.pruning.scorer import Scorer
    from toprl_export.runtime.frontend import FixedFrontend
    from toprl_export.runtime.layout import TokenBatch
    from toprl_export.runtime.session import EngineSession
    from toprl_export.tasks.task import Sample, Task

SPLIT: Final = "held-out"


@dataclass(frozen=True)
class ValidationOptions:
    """How much is measured, and where.

    Attributes:
        limit: held-out questions answered.
        parity_questions: how many of them have their prefills compared with our pruned reference's too.
        stock_questions: how many of them the unpruned engine answers beside the stock Hugging Face model.
        batch: questions in a batch where time is not measured.
        warmup: rounds of the latency measurement that are not counted.
        iterations: rounds that are.
        throughput_batches: batches at which whole requests per second are measured.
        threads: CPU threads of PyTorch and of the engine alike; None for all cores.
        device: where PyTorch and the engine run, "cpu" or "cuda".
        provider: the engine's name for where it runs; by default the name of ``device``.
        engine_options: what only the bundle's engine can be told, names and values.
        measure_memory: start one process per session to measure its peak memory, where all run on the CPU.
        seed: of questions, random pruning and bootstrap.
        model: where the reference model is now, if not where the bundle says; its weights must be the same.
    """

    limit: int = 500
    parity_questions: int = 64
    stock_questions: int = 16
    batch: int = 16
    warmup: int = 3
    iterations: int = 20
    throughput_batches: tuple[int, ...] = (1, 2, 4)
    threads: int | None = None
    device: str = "cpu"
    provider: str | None = None
    engine_options: Mapping[str, str] = field(default_factory=dict)
    measure_memory: bool = True
    seed: int = 0
    model: str | None = None

    def __post_init__(self) -> None:
        check_field_types(self)
        counts = {"limit": self.limit, "iterations": self.iterations, "batch": self.batch}
        counts |= {"parity_questions": self.parity_questions, "stock_questions": self.stock_questions}
        check_parallel("threads", self.threads)
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} is {value}, expected at least 1")
        if self.warmup < 0:
            raise UserError(f"warmup is {self.warmup}, expected at least 0")
        if self.provider is not None and (self.provider == "cpu") != (self.device == "cpu"):
            raise UserError(
                f"the engine would run by {self.provider!r} and the reference on {self.device!r}, which compares "
                "machines: let both be 'cpu', or add --device cuda"
            )

    @property
    def engine_provider(self) -> str:
        """The provider given, else that of the device."""
        return self.provider or self.device

    @property
    def thread_count(self) -> int:
        """The threads given, else one for each core."""
        return self.threads or usable_cores()


@dataclass(frozen=True)
class Bench:
    """What is compared, and on which questions.

    Attributes:
        bundle: under validation.
        task: whose held-out questions are answered.
        scorer: the task's agent, or the baseline that the bundle prunes by, in PyTorch.
        frontend: the bundle's.
        samples: the questions.
        runner: the reference model, pruned by ``scorer``.
        stock: the reference model as Hugging Face runs it, unpruned.
        engine: what the bundle was built for.
        pruned: the bundle, opened.
        unpruned: its unpruned graph, opened.
    """

    bundle: Bundle
    task: Task
    scorer: Scorer
    frontend: FixedFrontend
    samples: tuple[Sample, ...]
    runner: ReferenceRunner
    stock: EngineSession
    engine: Engine
    pruned: EngineSession
    unpruned: EngineSession

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for session in (self.pruned, self.unpruned, self.stock):
            session.close()

    @property
    def agent_index(self) -> int:
        """Which of the bundle's agents answers; 0 for a baseline."""
        return self.bundle.agent_index(self.task.name)

    @property
    def budgets_kept(self) -> tuple[int, ...]:
        """The bundle's budgets, largest first."""
        return self.bundle.manifest.budgets_kept

    def at_budget(self, budget_kept: int) -> MeasuredSession:
        """The pruned engine at one budget."""
        return MeasuredSession(self.pruned, self.bundle.keep_counts(budget_kept), self.agent_index)

    def timed_sessions(self) -> dict[str, MeasuredSession]:
        """All whose cost is measured: "reference", "engine_unpruned", and the engine by budget ("192")."""
        manifest = self.bundle.manifest
        everything = (manifest.model.visual_tokens,) * len(manifest.plan.stages)
        shared = {REFERENCE: self.stock, ENGINE_UNPRUNED: self.unpruned}
        named = {name: MeasuredSession(session, everything, self.agent_index) for name, session in shared.items()}
        return named | {str(budget): self.at_budget(budget) for budget in self.budgets_kept}

    def pruned_runs(self, seed: int) -> dict[int, PrunedRuns]:
        """For each budget the engine, its scorer in PyTorch, and random pruning with the same keep counts."""
        plan = self.bundle.manifest.plan
        return {
            budget: PrunedRuns(
                self.at_budget(budget),
                Pruning.from_plan(plan, budget, self.scorer),
                Pruning.from_plan(plan, budget, RandomScorer(derive_seed(seed, "random-pruning", budget))),
            )
            for budget in self.budgets_kept
        }

    def throughput_batches(self, options: ValidationOptions) -> tuple[int, ...]:
        """The requested batches that the questions fill and the engine takes."""
        largest = largest_batch(self.pruned, len(self.samples))
        return tuple(size for size in options.throughput_batches if size <= largest)

    def batches(self, size: int, limit: int | None = None) -> list[QuestionBatch]:
        """The questions, or the first ``limit`` of them, in batches of ``size`` or what the engine takes at once.

        Raises:
            UserError: a question leaves no room for its answer.
        """
        return self.batches_of(self.samples[:limit], size)

    def batches_of(self, samples: Sequence[Sample], size: int) -> list[QuestionBatch]:
        """`batches`, of any questions."""
        size = largest_batch(self.pruned, size)
        return [self._batch(samples[start : start + size]) for start in range(0, len(samples), size)]

    def encode(self, batch: QuestionBatch) -> EncodedQuestions:
        """Encode a batch's images with the reference's vision tower and with the engine's."""
        saliency = self.scorer.needs.saliency
        return EncodedQuestions.encode(batch, self.stock, self.pruned, self.runner, saliency)

    def tokens(self, questions: Sequence[str]) -> TokenBatch:
        """Prompts as ``toprl-export run`` takes them.

        Raises:
            UserError: one leaves no room for its answer.
        """
        model = self.bundle.manifest.model
        return self.frontend.tokens(questions, prompt_room(model.max_length, model.visual_tokens))

    def _batch(self, samples: Sequence[Sample]) -> QuestionBatch:
        pictures = self.frontend.pictures([sample.image for sample in samples]).arrays
        questions = tuple(sample.question for sample in samples)
        return QuestionBatch(pictures, self.tokens(questions), questions, tuple(sample.answer for sample in samples))


def open_bench(directory: Path, task_name: str | None, options: ValidationOptions) -> Bench:
    """Load the bundle, its reference model and its scorer, and open the engine pruned and unpruned.

    Raises:
        UserError: the bundle does not verify or has no agent for the task; the model is not the one it was built
            from; the engine cannot work here; or the task has no such question.
    """
    bundle = load_bundle(directory)
    task = TASKS.get(bundle.task(task_name))
    samples = tuple(task.samples(SPLIT, options.seed, options.limit))
    engine = get_engine(bundle.manifest.engine.name)
    model = bundle.manifest.model
    adapter = load_model(options.model or model.id, device=options.device, revision=model.revision)
    if adapter.fingerprint != model.fingerprint:
        raise UserError(
            f"{directory} was built from other weights ({model.id}, {model.fingerprint[:12]}…) than "
            f"{adapter.model_id} has ({adapter.fingerprint[:12]}…): build it again, or say where its model is (--model)"
        )
    scorer = _scorer(bundle, task.name).to(adapter.device)
    opened = SessionOptions(options.thread_count, options.engine_provider, engine_options=options.engine_options)
    pruned, unpruned = (engine.open(bundle, replace(opened, unpruned=which)) for which in (False, True))
    runner, stock = ReferenceRunner(adapter), StockSession(adapter)
    return Bench(bundle, task, scorer, bundle.fixed_frontend(), samples, runner, stock, engine, pruned, unpruned)


def _scorer(bundle: Bundle, task: str) -> Scorer:
    """What the bundle prunes by, in PyTorch."""
    if bundle.manifest.baseline is not None:
        return make_scorer(bundle.manifest.baseline)
    entry = bundle.agent(task)
    agent = load_agent(bundle.agent_dir(entry.task))
    if agent.fingerprint != entry.fingerprint:
        raise UserError(f"{bundle.agent_dir(entry.task)} holds another agent than the manifest names: build again")
    return agent.actor
