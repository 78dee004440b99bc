"""``validate``: from a bundle to a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from toprl_export.bundle import stamp_validation
from toprl_export.errors import UserError
from toprl_export.fields import read_header
from toprl_export.files import (
    check_replaceable,
    sha256_of,
    staged_directory,
    write_text_atomic,
)
from toprl_export.progress import Progress
from toprl_export.validate.assemble import Measured, assemble
from toprl_export.validate.bench import Bench, ValidationOptions, open_bench
from toprl_export.validate.gates import GateLimits
from toprl_export.validate.html import render_html
from toprl_export.validate.junit import junit_xml
from toprl_export.validate.latency import Timings, Workload, measure_latency, measure_throughput
from toprl_export.validate.memory import peak_memory
from toprl_export.validate.parity import measure_parity
from toprl_export.validate.report import (
    HTML_FILE,
    JUNIT_FILE,
    REPORT_FILE,
    Parity,
    Report,
    write_report,
)
from toprl_export.validate.retention import Answers, BudgetContenders, collect_answers, judge_answers

PARITY_BATCH = 3
"""Another batch size than the answers', so that parity does not hang on one."""
THROUGHPUT_ROUNDS = 5


def validate(
    bundle: Path,
    task: str | None = None,
    *,
    options: ValidationOptions | None = None,
    limits: GateLimits | None = None,
    report_dir: Path | None = None,
    command: str = "python",
) -> Report:
    """Measure a bundle against its reference model, hold it against the gates, write the report, stamp the bundle.

    Args:
        bundle: what ``build`` wrote.
        task: one of its tasks, or any where a baseline prunes; the first by default.
        options: how much is measured.
        limits: the gates; by default those of `GateLimits`.
        report_dir: where ``report.json``, ``report.html`` and ``junit.xml`` go, in the place of an earlier report;
            by default beside the bundle, see `default_report_dir`.
        command: the command line, for the report.

    Raises:
        UserError: the bundle does not verify or does not fit its model, there is no such task, a gate names a budget
            that the bundle lacks, the GPU has too little memory, or the report cannot be written there.
    """
    options, limits = options or ValidationOptions(), limits or GateLimits()
    target = report_dir or default_report_dir(bundle)
    _check_takes_report(target)
    with _torch_threads(options.thread_count), _fp32_without_tf32(), _memory_missed():
        bench = open_bench(bundle, task, options)
        limits.check_budgets(bench.budgets_kept)
        measured = _measure(bench, options)
    report = assemble(bench, options, measured, limits, command)
    _check_takes_report(target)  # measuring takes long enough for files to appear there
    with staged_directory(target, overwrite=True, marker=REPORT_FILE) as staging:
        write_report(staging / REPORT_FILE, report)
        write_text_atomic(staging / HTML_FILE, render_html(report))
        write_text_atomic(staging / JUNIT_FILE, junit_xml(report))
    stamp_validation(bundle, report.task, sha256_of(target / REPORT_FILE), report.verdict)
    return report


def default_report_dir(bundle: Path) -> Path:
    """``engines/T`` is reported in ``engines/T-report``."""
    resolved = bundle.resolve()
    return resolved.with_name(f"{resolved.name}-report")


def _check_takes_report(target: Path) -> None:
    """Refuse a directory that holds anything but an earlier report, for all that is in it gets lost.

    Raises:
        UserError: it does, or a report cannot take its place (see `check_replaceable`).
    """
    check_replaceable(target, overwrite=True, marker=REPORT_FILE)
    entries = sorted(target.iterdir()) if target.exists() else []
    ours = (REPORT_FILE, HTML_FILE, JUNIT_FILE)
    others = [path.name for path in entries if path.name not in ours or not path.is_file()]
    if others:
        raise UserError(f"{target} holds something else ({others[0]}), so it is left alone: choose another directory")
    if not entries:
        return
    try:
        read_header(Report, target / REPORT_FILE)
    except UserError as error:
        raise UserError(
            f"{target} holds no earlier report of ours, so it is left alone ({error}): choose another directory"
        ) from error


def _measure(bench: Bench, options: ValidationOptions) -> Measured:
    budgets = bench.accuracy_contenders(options.seed)
    with Progress("answers", len(bench.samples), "question") as bar:
        stock = bench.latency_contenders()["reference"]
        batches = bench.batches(options.batch)
        answers = collect_answers(stock, bench.tokenizer, bench.runner, budgets, batches, bar.update)
    parity = {}
    with Progress("parity", len(budgets), "budget") as bar:
        for budget in budgets:
            parity[budget] = _parity(bench, options, budgets[budget], answers, budget)
            bar.update()
    timings, throughput = _time(bench, options)
    return Measured(
        {k: judge_answers(bench.task, bench.tokenizer, answers, k, options.seed) for k in budgets},
        parity,
        timings,
        throughput,
        _memory(bench, options),
    )


def _parity(bench: Bench, options: ValidationOptions, ways: BudgetContenders, answers: Answers, budget: int) -> Parity:
    count = options.parity_questions
    return measure_parity(
        ways.engine,
        bench.runner,
        ways.pruned_reference,
        bench.batches(PARITY_BATCH, count),
        answers.engine[budget][:count],
        answers.pruned_reference[budget][:count],
    )


def _time(bench: Bench, options: ValidationOptions) -> tuple[dict[str, Timings], dict[str, tuple[float, ...]]]:
    contenders = bench.latency_contenders()
    first = bench.batches(1, 1)[0]
    with Progress("latency", options.warmup + options.iterations, "round") as bar:
        workload = Workload(first.pixels, first.tokens)
        timings = measure_latency(contenders, workload, options.warmup, options.iterations, bar.update)
    batches = [bench.batches(size, size)[0] for size in bench.throughput_batches(options)]
    with Progress("throughput", len(batches) * (THROUGHPUT_ROUNDS + 1)) as bar:
        workloads = [Workload(batch.pixels, batch.tokens) for batch in batches]
        throughput = measure_throughput(contenders, workloads, THROUGHPUT_ROUNDS, bar.update)
    return timings, throughput


def _memory(bench: Bench, options: ValidationOptions) -> dict[str, int]:
    """Peak bytes by the names of `Bench.latency_contenders`; empty when it is not to be measured, or not of a CPU."""
    if not options.measure_memory or options.device != "cpu":
        return {}
    peaks = {}
    contenders = bench.latency_contenders()
    with Progress("memory", len(contenders), "contender") as bar:
        for name, contender in contenders.items():
            kind = "engine" if name.isdecimal() else name
            question = bench.samples[0].question
            peaks[name] = peak_memory(bench.bundle.dir, kind, contender.keep_counts, question, options.thread_count)
            bar.update()
    return peaks


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use ``threads`` for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
def _memory_missed() -> Iterator[None]:
    """Make one line of PyTorch's want of device memory; engines have lines of their own."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU has too little memory for the reference model in PyTorch beside the bundle's engine, pruned and "
            "unpruned: stop what else uses it, or take one with more"
        ) from error
