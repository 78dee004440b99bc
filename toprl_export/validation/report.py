"""The report: what validation measured, as typed records and as ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias
from xml.etree import ElementTree

from toprl_export.evaluation.machine import Device
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_json_atomic
from toprl_export.manifest import Verdict

REPORT_FILE = "report.json"
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

    ``realised_share`` is ``prefill_vs_engine_unpruned`` divided by the FLOPs ratio of the two graphs (of the formula
    where the engine cannot count its graphs).
    """

    prefill_vs_reference: float
    prefill_vs_engine_unpruned: float
    total_vs_reference: float
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
    """Peak resident bytes of a fresh process that loads one session and answers one request."""

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
    """Everything measured at one budget; ``latency_ms`` holds medians, ``latency_iqr_ms`` interquartile ranges."""

    budget_kept: int
    visual_tokens: int
    keep_counts: tuple[int, ...]
    average_kept: float
    accuracy: AccuracyComparison
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


@dataclass(frozen=True)
class Gate:
    """One limit at one budget, and whether the figure keeps it."""

    name: str
    budget_kept: int
    measured: float | None
    comparison: Comparison
    limit: float
    passed: bool

    @property
    def sentence(self) -> str:
        """The gate and its outcome in words."""
        measured = "not measurable" if self.measured is None else f"{self.measured:.4g}"
        wanted = f"wanted {self.comparison} {self.limit:.4g}{'' if self.passed else ': failed'}"
        return f"{self.name} at {self.budget_kept} kept is {measured}, {wanted}"


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
    """How it was measured."""

    split: str
    questions: int
    parity_questions: int
    warmup: int
    iterations: int
    generated_tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class Report:
    """The outcome of validating one bundle on one task."""

    format: Literal["toprl-export/report"] = field(default="toprl-export/report", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    verdict: Verdict
    task: str
    metric: str
    subject: Subject
    gates: tuple[Gate, ...]
    budgets: tuple[BudgetReport, ...]
    settings: Settings
    device: Device
    versions: dict[str, str]
    seed: int
    command: str

    def gates_of(self, budget_kept: int) -> tuple[Gate, ...]:
        """The gates of one budget."""
        return tuple(gate for gate in self.gates if gate.budget_kept == budget_kept)

    def passed_at(self, budget_kept: int) -> bool:
        """Whether every gate of one budget was met."""
        return all(gate.passed for gate in self.gates_of(budget_kept))


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
    failures = sum(not gate.passed for gate in report.gates)
    counts = {"tests": str(len(report.gates)), "failures": str(failures), "errors": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": f"toprl-export validate {report.task}", **counts})
    for gate in report.gates:
        classname = f"{report.task}.kept-{gate.budget_kept}"
        case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": gate.name})
        if not gate.passed:
            ElementTree.SubElement(case, "failure", {"message": gate.sentence})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
