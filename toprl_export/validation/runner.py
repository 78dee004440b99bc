"""``validate``: from a bundle to a report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from toprl_export.bundle import ValidationStamp, stamp_validation
from toprl_export.errors import UserError
from toprl_export.evaluation.machine import describe_device, installed_versions, source_commit, torch_threads
from toprl_export.evaluation.questions import questions_digest
from toprl_export.fields import check_types
from toprl_export.files import MOST_JSON_BYTES, read_regular, sha256_of, write_text_atomic
from toprl_export.places import check_replaceable, check_writable, resolved, staged_directory, taken
from toprl_export.progress import Progress
from toprl_export.pruning.actor import Actor
from toprl_export.pruning.flops import plan_flops
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS
from toprl_export.runtime.session import largest_batch
from toprl_export.validation.answers import Answers, EncodedQuestions, PrefillParity, Retention, judge_answers
from toprl_export.validation.bench import SPLIT, Bench, ValidationOptions, open_bench
from toprl_export.validation.costs import (
    ENGINE_UNPRUNED,
    GENERATED_TOKENS,
    REFERENCE,
    RoundTimings,
    Workload,
    measure_latency,
    measure_throughput,
    peak_memory,
)
from toprl_export.validation.examples import draw_examples
from toprl_export.validation.gates import GateLimits, evaluate_budget, evaluate_bundle, verdict_of
from toprl_export.validation.html import render_html
from toprl_export.validation.regression import check_comparable, regression_gates, regression_note
from toprl_export.validation.report import (
    HTML_FILE,
    JUNIT_FILE,
    REPORT_FILE,
    REPORT_FORMAT,
    BudgetReport,
    Flops,
    Latency,
    LatencyComparison,
    Parity,
    PeakMemory,
    Report,
    Settings,
    Speedup,
    StockParity,
    Subject,
    Throughput,
    junit_xml,
    read_report,
    write_report,
)
from toprl_export.validation.stock_parity import measure_stock_parity

PARITY_BATCH = 3
"""Another batch size than that of the answers, so that parity does not depend on one."""
THROUGHPUT_ROUNDS = 5


def validate(
    bundle: Path,
    task: str | None = None,
    *,
    options: ValidationOptions | None = None,
    limits: GateLimits | None = None,
    against: Path | None = None,
    report_dir: Path | None = None,
    command: str = "python",
) -> Report:
    """Measure a bundle against its reference model, hold it against the gates, write the report, stamp the bundle.

    Args:
        bundle: what ``build`` wrote.
        task: one of its tasks, or any where a baseline prunes; the first by default.
        options: how much is measured.
        limits: the gates; by default those of `GateLimits`.
        against: an earlier ``report.json`` of this task: what is worse now, beyond noise, fails.
        report_dir: where ``report.json``, ``report.html`` and ``junit.xml`` go, in the place of an earlier report;
            by default beside the bundle, see `default_report_dir`.
        command: the command line, for the report.

    Raises:
        UserError: the bundle does not verify or does not fit its model, there is no such task, a gate names a budget
            that the bundle lacks, the GPU has too little memory, or the report cannot be written there.
    """
    types = {"bundle": Path, "task": str | None, "against": Path | None, "report_dir": Path | None, "command": str}
    check_types("validate", types, locals())
    options, limits = options or ValidationOptions(), limits or GateLimits()
    target = report_dir or default_report_dir(bundle)
    _check_takes_report(target)
    check_writable(target)
    with taken(target):
        return _validate(bundle, task, options, limits, target, command, against)


def _validate(
    bundle: Path,
    task: str | None,
    options: ValidationOptions,
    limits: GateLimits,
    target: Path,
    command: str,
    against: Path | None,
) -> Report:
    with torch_threads(options.thread_count), _fp32_without_tf32(), _out_of_memory_in_one_line():
        start = time.monotonic()
        with open_bench(bundle, task, options) as bench:
            limits.check_budgets(bench.budgets_kept)
            earlier = None if against is None else read_report(against)
            if earlier is not None:
                check_comparable(earlier, bench.task.name, bench.budgets_kept)
            measured = _measure(bench, options)
            report = assemble(bench, options, measured, limits, command, time.monotonic() - start, earlier)
            examples = draw_examples(bench, report)
    _check_takes_report(target)  # measuring takes long enough for files to appear there
    with staged_directory(target, overwrite=True, marker=REPORT_FILE) as staging:
        write_report(staging / REPORT_FILE, report)
        write_text_atomic(staging / HTML_FILE, render_html(report, examples))
        write_text_atomic(staging / JUNIT_FILE, junit_xml(report))
    limits_in_words = tuple(f"{gate.subject} {gate.wanted}" for gate in report.gates)
    digest, questions = sha256_of(target / REPORT_FILE), report.settings.questions
    stamp = ValidationStamp(report.task, digest, report.verdict, questions, limits_in_words)
    stamp_validation(bundle, report.subject.manifest_sha256, stamp)
    return report


def default_report_dir(bundle: Path) -> Path:
    """``engines/T`` is reported in ``engines/T-report``."""
    place = resolved(bundle)
    return place.with_name(f"{place.name}-report")


def _check_takes_report(target: Path) -> None:
    """Refuse a directory that holds anything but an earlier report, for all that is in it gets lost.

    Raises:
        UserError: it does, or a report cannot take its place (see `check_replaceable`).
    """
    check_replaceable(resolved(target), overwrite=True, marker=REPORT_FILE)
    entries = sorted(target.iterdir()) if target.exists() else []
    ours = (REPORT_FILE, HTML_FILE, JUNIT_FILE)
    others = [path.name for path in entries if path.name not in ours or not path.is_file()]
    if others:
        raise UserError(f"{target} holds something else ({others[0]}), so it is left alone: choose another directory")
    if not entries:
        return
    if not _is_report(target / REPORT_FILE):
        raise UserError(f"{target} holds no earlier report of ours, so it is left alone: choose another directory")


def _is_report(path: Path) -> bool:
    """Whether it is a report, of whatever version: an older one may be replaced too."""
    try:
        payload = json.loads(read_regular(path, "a report", MOST_JSON_BYTES))
    except (UserError, ValueError, RecursionError):
        return False
    return isinstance(payload, dict) and payload.get("format") == REPORT_FORMAT


@dataclass(frozen=True)
class Measured:
    """What was measured, by budget or by the names of `Bench.timed_sessions`; ``memory`` may be empty."""

    retention: dict[int, Retention]
    parity: dict[int, Parity]
    timings: dict[str, RoundTimings]
    throughput: dict[str, tuple[float, ...]]
    memory: dict[str, int]
    stock: StockParity


def _measure(bench: Bench, options: ValidationOptions) -> Measured:
    stock = _stock(bench, options)
    answers, parity = _answer(bench, options)
    timings, throughput = _time(bench, options)
    questions = [sample.question for sample in bench.samples]
    retention = {
        k: judge_answers(bench.task, bench.frontend.tokenizer, questions, answers, k, options.seed)
        for k in bench.budgets_kept
    }
    return Measured(retention, parity, timings, throughput, _memory(bench, options), stock)


def _stock(bench: Bench, options: ValidationOptions) -> StockParity:
    samples = bench.samples[: options.stock_questions]
    with Progress("stock model", len(samples), "question") as bar:
        return measure_stock_parity(bench, samples, DEFAULT_NEW_TOKENS, bar.update)


def _answer(bench: Bench, options: ValidationOptions) -> tuple[Answers, dict[int, Parity]]:
    """Answer every question, and compare the prefills of the first ``parity_questions``."""
    runs, stock = bench.pruned_runs(options.seed), bench.timed_sessions()[REFERENCE]
    answers, parity, compared = Answers(), {budget: PrefillParity() for budget in runs}, options.parity_questions
    with Progress("answers", len(bench.samples), "question") as bar:
        for batch in bench.batches(options.batch):
            encoded = bench.encode(batch)
            left = max(compared - len(answers.expected), 0)
            answers.add(encoded, batch.answers, stock, runs, bench.runner, DEFAULT_NEW_TOKENS)
            for part in _parts(bench, encoded, batch.questions[:left]):
                for budget, prefills in parity.items():
                    prefills.add(part, runs[budget], bench.runner)
            bar.update(len(batch.answers))
    agreement = {
        budget: prefills.summarise(answers.engine[budget][:compared], answers.pruned_reference[budget][:compared])
        for budget, prefills in parity.items()
    }
    return answers, agreement


def _parts(bench: Bench, encoded: EncodedQuestions, questions: Sequence[str]) -> Iterator[EncodedQuestions]:
    """The questions, which are the first of a batch, in batches of their own."""
    size = largest_batch(bench.pruned, PARITY_BATCH)
    for start in range(0, len(questions), size):
        yield encoded.part(start, bench.tokens(questions[start : start + size]))


def _time(bench: Bench, options: ValidationOptions) -> tuple[dict[str, RoundTimings], dict[str, tuple[float, ...]]]:
    sessions = bench.timed_sessions()
    first = bench.batches(1, 1)[0]
    with Progress("latency", options.warmup + options.iterations, "round") as bar:
        workload = Workload(first.pictures, first.tokens)
        timings = measure_latency(sessions, workload, options.warmup, options.iterations, bar.update)
    batches = [bench.batches(size, size)[0] for size in bench.throughput_batches(options)]
    with Progress("throughput", len(batches) * (THROUGHPUT_ROUNDS + 1)) as bar:
        workloads = [Workload(batch.pictures, batch.tokens) for batch in batches]
        throughput = measure_throughput(sessions, workloads, THROUGHPUT_ROUNDS, bar.update)
    return timings, throughput


def _memory(bench: Bench, options: ValidationOptions) -> dict[str, int]:
    """Peak bytes by the names of `Bench.timed_sessions`; empty when it is not to be measured, or not on a CPU."""
    if not options.measure_memory or options.device != "cpu":
        return {}
    peaks = {}
    sessions = bench.timed_sessions()
    shared = bench.tokens([bench.samples[0].question]), options.thread_count, bench.runner.adapter.model_id
    with Progress("memory", len(sessions), "process") as bar:
        for name, session in sessions.items():
            kind = "engine" if name.isdecimal() else name
            peaks[name] = peak_memory(bench.bundle.dir, kind, session.keep_counts, *shared, options.engine_options)
            bar.update()
    return peaks


def assemble(
    bench: Bench,
    options: ValidationOptions,
    measured: Measured,
    limits: GateLimits,
    command: str,
    seconds: float,
    earlier: Report | None = None,
) -> Report:
    """The report of what was measured in ``seconds``, held against the gates and an earlier report.

    Raises:
        UserError: the earlier report is of another task.
    """
    graph_unpruned = _graph_flops(bench, None)
    budgets = tuple(_budget_report(bench, options, measured, budget, graph_unpruned) for budget in bench.budgets_kept)
    size = sum(file.size for file in bench.bundle.manifest.files)
    gates = evaluate_bundle(len(bench.samples), size, measured.stock, limits)
    gates += tuple(gate for budget in budgets for gate in evaluate_budget(budget, limits))
    report = Report(
        verdict=verdict_of(gates),
        task=bench.task.name,
        metric=bench.task.metric,
        subject=_subject(bench),
        gates=gates,
        stock_parity=measured.stock,
        bundle_bytes=size,
        budgets=budgets,
        settings=Settings(
            split=SPLIT,
            questions=len(bench.samples),
            questions_sha256=questions_digest(bench.samples),
            parity_questions=min(options.parity_questions, len(bench.samples)),
            warmup=options.warmup,
            iterations=options.iterations,
            generated_tokens=GENERATED_TOKENS,
            prompt_tokens=_prompt_tokens(bench),
        ),
        device=describe_device(options.device, options.thread_count),
        versions=installed_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        commit=source_commit(),
        seed=options.seed,
        command=command,
    )
    if earlier is None:
        return report
    compared = (*gates, *regression_gates(report, earlier))
    notes = (regression_note(report, earlier, compared),)
    return replace(report, gates=compared, verdict=verdict_of(compared), notes=notes)


def _budget_report(
    bench: Bench, options: ValidationOptions, measured: Measured, budget: int, graph_unpruned: int | None
) -> BudgetReport:
    plan, name = bench.bundle.manifest.plan, str(budget)
    schedule = plan.schedule(budget)
    retention, flops, memory = measured.retention[budget], _flops(bench, budget, graph_unpruned), measured.memory
    medians = {one: timings.median for one, timings in measured.timings.items()}
    spreads = {one: timings.interquartile_range for one, timings in measured.timings.items()}
    throughput = (measured.throughput[one] for one in (REFERENCE, ENGINE_UNPRUNED, name))
    return BudgetReport(
        budget_kept=budget,
        visual_tokens=plan.visual_tokens,
        keep_counts=schedule.keep_counts,
        average_kept=schedule.average_kept,
        accuracy=retention.accuracy,
        scores=retention.scores,
        retention=retention.retention,
        retention_ci95=retention.retention_ci95,
        engine_minus_random_ci95=retention.engine_minus_random_ci95,
        parity=measured.parity[budget],
        latency_ms=_comparison(medians, name),
        latency_iqr_ms=_comparison(spreads, name),
        speedup=_speedup(_comparison(medians, name), flops),
        throughput=tuple(map(Throughput, bench.throughput_batches(options), *throughput)),
        peak_memory_bytes=PeakMemory(memory[REFERENCE], memory[ENGINE_UNPRUNED], memory[name]) if memory else None,
        flops=flops,
        wrong_answers=retention.wrong_answers,
    )


def _comparison(figures: dict[str, Latency], budget: str) -> LatencyComparison:
    return LatencyComparison(figures[REFERENCE], figures[ENGINE_UNPRUNED], figures[budget])


def _speedup(latency: LatencyComparison, flops: Flops) -> Speedup:
    pruned = latency.engine
    against_engine = latency.engine_unpruned.prefill / pruned.prefill
    return Speedup(
        total_vs_engine_unpruned=latency.engine_unpruned.total / pruned.total,
        prefill_vs_reference=latency.reference.prefill / pruned.prefill,
        prefill_vs_engine_unpruned=against_engine,
        total_vs_reference=latency.reference.total / pruned.total,
        realised_share=against_engine / flops.ratio,
    )


def _flops(bench: Bench, budget: int, graph_unpruned: int | None) -> Flops:
    manifest, scorer = bench.bundle.manifest, bench.scorer
    schedule, shape = manifest.plan.schedule(budget), manifest.model.shape
    sizes = manifest.plan, schedule, shape.hidden, shape.intermediate
    if isinstance(scorer, Actor):
        actor = scorer.config
        formula = plan_flops(*sizes, actor.hidden_size, actor.condition, actor.residual)
    else:
        formula = plan_flops(*sizes, actor_hidden=None)
    graph = _graph_flops(bench, schedule.keep_counts)
    return Flops(formula.pruned + formula.actor, formula.unpruned, graph, graph_unpruned)


def _graph_flops(bench: Bench, keep_counts: tuple[int, ...] | None) -> int | None:
    """Those of one prefill in the built graph; None as keep counts for the unpruned graph."""
    return bench.engine.graph_flops(bench.bundle, 1, _prompt_tokens(bench), keep_counts)


def _subject(bench: Bench) -> Subject:
    manifest = bench.bundle.manifest
    entry = None if manifest.baseline else bench.bundle.agent(bench.task.name)
    return Subject(
        bundle=str(bench.bundle.dir),
        manifest_sha256=manifest.built_sha256,
        engine=manifest.engine.name,
        precision=manifest.engine.precision,
        model=manifest.model.id,
        model_fingerprint=manifest.model.fingerprint,
        agent_fingerprint=entry.fingerprint if entry else None,
        method=entry.method if entry else str(manifest.baseline),
    )


def _prompt_tokens(bench: Bench) -> int:
    """Tokens of the first question's prompt, which is the one whose time is taken."""
    return int(bench.batches(1, 1)[0].tokens.input_ids.shape[1])


@contextmanager
def _fp32_without_tf32() -> Iterator[None]:
    """Let PyTorch on a GPU not round the factors of fp32 products to TF32, as by itself it does in convolutions."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


@contextmanager
def _out_of_memory_in_one_line() -> Iterator[None]:
    """Make PyTorch's running out of device memory one line; engines have lines of their own."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "out of GPU memory: it does not hold the reference model in PyTorch beside the bundle's engine, pruned and "
            "unpruned: stop what else uses the GPU, or use one with more memory"
        ) from error
