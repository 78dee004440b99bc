"""The report: what validation measured, as typed records and as ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias
from xml.etree import ElementTree

from toprl_export.errors import UserError
from toprl_export.evaluation.machine import Device
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_json_atomic
from toprl_export.manifest import Verdict

REPORT_FILE = "report.json"
REPORT_FORMAT: Final = "toprl-export/report"
HTML_FILE = "report.html"
JUNIT_FILE = "junit.xml"

Comparison: TypeAlias = Literal[">=", "<=", ">"]
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Accuracy:
    """A task's metric (0 to 1) over ``n`` questions, with its 95% interval; ``f1`` (0 to 1) where the task has one."""

    value: float
    n: int
    ci95: Interval
    f1: float | None


@dataclass(frozen=True)
class AccuracyComparison:
    """The same questions, answered four ways.

    ``reference`` is the stock PyTorch model without pruning, ``pruned_reference`` PyTorch pruned by the bundle's
    scorer, ``engine`` the bundle, ``random`` PyTorch with random pruning at the same keep counts.
    """

    reference: Accuracy
    pruned_reference: Accuracy
    engine: Accuracy
    random: Accuracy


@dataclass(frozen=True)
class Scores:
    """Each question's score (0 or 1) in the questions' order, separated by commas, so that every interval can be
    computed again and a later report compared question by question."""

    reference: str
    pruned_reference: str
    engine: str
    random: str

    def __post_init__(self) -> None:
        given = self.reference, self.pruned_reference, self.engine, self.random
        read = [scores.split(",") for scores in given]
        if len({len(scores) for scores in read}) != 1 or any(one not in ("0", "1") for each in read for one in each):
            raise UserError(
                "the scores of a report are not 0 or 1 for each of the same questions, separated by commas: validate "
                "again"
            )

    @classmethod
    def of(cls, scores: Mapping[str, Sequence[float]]) -> Scores:
        """Of the scores by the names of the fields."""
        return cls(**{name: ",".join(f"{score:g}" for score in given) for name, given in scores.items()})

    @property
    def engine_list(self) -> list[float]:
        """The engine's as numbers."""
        return [float(score) for score in self.engine.split(",")]


@dataclass(frozen=True)
class WrongAnswer:
    """A question that the pruned engine answered wrong, its place among all from 0, and the unpruned answer."""

    index: int
    question: str
    expected: str
    engine: str
    reference: str


@dataclass(frozen=True)
class Parity:
    """How closely the engine follows the pruned PyTorch reference over ``n`` questions.

    ``kept_overlap_per_stage`` is the mean share (0 to 1) of the kept set on which both agree. A logit error is the
    largest absolute difference of the prefill logits: ``free`` when each selects for itself, ``forced`` when the
    reference replays the engine's kept indices; None when a logit is not a finite number. ``greedy_agreement`` is the
    share of equal generated tokens.
    """

    kept_overlap_per_stage: tuple[float, ...]
    logit_error_free: float | None
    logit_error_forced: float | None
    greedy_agreement: float
    n: int


@dataclass(frozen=True)
class StockParity:
    """How closely the *unpruned* engine follows the stock Hugging Face model over ``n`` questions, each from the pixels
    of its own frontend: the bundle's, and the checkpoint's processor called by itself.

    ``logit_error`` is the largest absolute difference of the prefill logits, None when one is not a finite number;
    ``agreement`` the share of equal tokens between the engine's greedy answers and the model's own ``generate``.
    """

    logit_error: float | None
    agreement: float
    n: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one request's parts."""

    vision: float
    prefill: float
    decode_per_token: float
    total: float


@dataclass(frozen=True)
class LatencyComparison:
    """The parts' times for the stock PyTorch model, the engine's unpruned graph and the pruned engine."""

    reference: Latency
    engine_unpruned: Latency
    engine: Latency


@dataclass(frozen=True)
class Speedup:
    """Ratios of median times measured in the same rounds; above 1 the pruned engine is the faster one.

    ``total_vs_engine_unpruned``, whole requests against the same engine without pruning, is what pruning is worth.
    ``realised_share`` is ``prefill_vs_engine_unpruned`` divided by the FLOPs ratio of the two graphs (of the formula
    where the engine cannot count its graphs).
    """

    total_vs_engine_unpruned: float
    prefill_vs_engine_unpruned: float
    total_vs_reference: float
    prefill_vs_reference: float
    realised_share: float


@dataclass(frozen=True)
class Throughput:
    """Whole requests per second at a batch size of ``batch``."""

    batch: int
    reference: float
    engine_unpruned: float
    engine: float


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident bytes of a fresh process that loads one session and answers one request, each page counted once."""

    reference: int
    engine_unpruned: int
    engine: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prefill: by Eq. 8-12 (visual tokens only, with the actor) and counted in the built graphs."""

    formula: float
    formula_unpruned: float
    graph: float | None
    graph_unpruned: float | None

    @property
    def ratio(self) -> float:
        """Unpruned over pruned, by the graphs where they were counted, else by the formula."""
        if self.graph and self.graph_unpruned:
            return self.graph_unpruned / self.graph
        return self.formula_unpruned / self.formula


@dataclass(frozen=True)
class BudgetReport:
    """Everything measured at one budget; ``latency_ms`` holds medians, ``latency_iqr_ms`` interquartile ranges.

    ``wrong_answers`` are the first of the engine's.
    """

    budget_kept: int
    visual_tokens: int
    keep_counts: tuple[int, ...]
    average_kept: float
    accuracy: AccuracyComparison
    scores: Scores
    retention: float | None
    retention_ci95: Interval | None
    engine_minus_random_ci95: Interval
    parity: Parity
    latency_ms: LatencyComparison
    latency_iqr_ms: LatencyComparison
    speedup: Speedup
    throughput: tuple[Throughput, ...]
    peak_memory_bytes: PeakMemory | None
    flops: Flops
    wrong_answers: tuple[WrongAnswer, ...] = ()

    def __post_init__(self) -> None:
        latency, speedup, peak = self.latency_ms, self.speedup, self.peak_memory_bytes
        divisors = [one.total for one in (latency.reference, latency.engine_unpruned, latency.engine)]
        divisors += [speedup.total_vs_engine_unpruned, speedup.total_vs_reference, peak.engine if peak else 1]
        if min(divisors) <= 0:
            raise UserError(
                f"times, speedups and peak memory at {self.budget_kept} kept must be above 0: validate again"
            )


@dataclass(frozen=True)
class Gate:
    """One limit and whether the figure keeps it; ``budget_kept`` is None where it concerns the whole bundle, and
    ``default`` says that nobody set this limit."""

    name: str
    budget_kept: int | None
    measured: float | None
    comparison: Comparison
    limit: float
    passed: bool
    default: bool = False

    @property
    def wanted(self) -> str:
        """The limit in words."""
        return f"{self.comparison} {self.limit:.4g}{' (default)' if self.default else ''}"

    @property
    def subject(self) -> str:
        """What is limited, in words."""
        return self.name if self.budget_kept is None else f"{self.name} at {self.budget_kept} kept"

    @property
    def sentence(self) -> str:
        """The gate and its outcome in words."""
        measured = "not measurable" if self.measured is None else f"{self.measured:.4g}"
        return f"{self.subject} is {measured}, wanted {self.wanted}{'' if self.passed else ': failed'}"


@dataclass(frozen=True)
class Subject:
    """What was validated, by content; a baseline's bundle has no agent, and ``method`` is then the baseline's name."""

    bundle: str
    manifest_sha256: str
    engine: str
    precision: str
    model: str
    model_fingerprint: str
    agent_fingerprint: str | None
    method: str

    @property
    def pruned_by(self) -> str:
        """What chooses the tokens, in words."""
        return f"{self.method} {'baseline' if self.agent_fingerprint is None else 'agent'}"


@dataclass(frozen=True)
class Settings:
    """How it was measured; ``questions_sha256`` is over the questions, their answers and their images' pixels."""

    split: str
    questions: int
    questions_sha256: str
    parity_questions: int
    warmup: int
    iterations: int
    generated_tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class Report:
    """The outcome of validating one bundle on one task.

    ``date`` is UTC, ``seconds`` how long measuring took, ``commit`` that of the working tree this package runs from,
    where it is one, and ``notes`` say what else a reader must know.
    """

    format: Literal["toprl-export/report"] = field(default="toprl-export/report", kw_only=True)
    version: Literal[2] = field(default=2, kw_only=True)
    verdict: Verdict
    task: str
    metric: str
    subject: Subject
    gates: tuple[Gate, ...]
    stock_parity: StockParity
    bundle_bytes: int
    budgets: tuple[BudgetReport, ...]
    settings: Settings
    device: Device
    versions: dict[str, str]
    date: str
    seconds: float
    commit: str | None
    seed: int
    command: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bundle_bytes < 1 or any(len(one.scores.engine_list) != self.settings.questions for one in self.budgets):
            raise UserError(
                f"a report of {self.settings.questions} questions must have a score for each at every budget, and the "
                "bundle's size: validate again"
            )

    def gates_of(self, budget_kept: int) -> tuple[Gate, ...]:
        """The gates of one budget."""
        return tuple(gate for gate in self.gates if gate.budget_kept == budget_kept)

    def passed_at(self, budget_kept: int) -> bool:
        """Whether every gate of one budget was met."""
        return all(gate.passed for gate in self.gates_of(budget_kept))

    @property
    def failed_gates(self) -> tuple[Gate, ...]:
        """The gates that were not met."""
        return tuple(gate for gate in self.gates if not gate.passed)


def write_report(path: Path, report: Report) -> None:
    """Write ``report.json``."""
    write_json_atomic(path, to_json(report))


def read_report(path: Path) -> Report:
    """Read ``report.json``.

    Raises:
        UserError: the file is missing, of another format or version, or lacks a field.
    """
    return read_file(Report, path, "validate again")


def junit_xml(report: Report) -> str:
    """The gates as JUnit XML, which CI systems show: one test case per gate; a gate that was not met is a failure."""
    counts = {"tests": str(len(report.gates)), "failures": str(len(report.failed_gates)), "errors": "0"}
    counts["time"] = f"{report.seconds:.3f}"
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": f"toprl-export validate {report.task}", **counts})
    for gate in report.gates:
        part = "bundle" if gate.budget_kept is None else f"kept-{gate.budget_kept}"
        about = {"classname": f"{report.task}.{part}", "name": f"{gate.name} {gate.wanted}", "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", about)
        ElementTree.SubElement(case, "system-out").text = gate.sentence
        if not gate.passed:
            ElementTree.SubElement(case, "failure", {"message": gate.sentence})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
