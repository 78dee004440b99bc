"""``report.html``: the report for people, one file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from toprl_export.validation.charts import Series, column_chart, dot_chart, stacked_bars
from toprl_export.validation.examples import Example, render_examples
from toprl_export.validation.report import Accuracy, BudgetReport, Interval, Latency, LatencyComparison, Report

GREY, BLUE, GREEN, AMBER, LIGHT = "#5b6472", "#2563c9", "#128a67", "#d9822b", "#9db8e3"
GREENS = (GREEN, "#4fb89a", "#0b5a44", "#8fd6c1")

STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --page: #fff; --quiet: #5b6472; --line: #dfe3ea; --strong: #3a4353;
  --good: #0d6b50; --bad: #b02a21; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --page: #14181f; --quiet: #9aa5b4; --line: #2e3744;
  --strong: #c3ccd8; --good: #5fcaa5; --bad: #f0847b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.5rem 4rem; color: var(--text); background: var(--page);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .3rem 0 .6rem; } .quiet { color: var(--quiet); }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; font-size: 1rem;
  vertical-align: .2rem; margin-left: .5rem; }
.passed { background: #128a67; } .failed { background: #c0362c; }
td.passed, td.failed { background: none; font-weight: 600; }
td.passed { color: var(--good); } td.failed { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; color: var(--strong); border-bottom: 2px solid var(--line); }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td .quiet { font-size: .85em; white-space: nowrap; }
.scroll { overflow-x: auto; } figure { margin: .5rem 0; } img { max-width: 100%; height: auto; border-radius: .4rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 12.5px; fill: var(--text); } svg .small { font-size: 11px; fill: var(--quiet); }
svg text.light { fill: #fff; } svg .grid { stroke: var(--line); } code { font-size: .9em; overflow-wrap: anywhere; }
ul.failures { margin: .6rem 0; padding: .5rem 1rem .5rem 2rem; border-left: 4px solid var(--bad); }
@media (max-width: 40rem) { body { padding: 1rem .8rem 2rem; font-size: 14px; } figure { overflow-x: auto; }
  svg, img { min-width: 34rem; } th, td { padding: .3rem .35rem; } }
@media print { body { padding: 0; font-size: 11px; max-width: none; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def render_html(report: Report, examples: Sequence[Example] = ()) -> str:
    """The page: verdict, table, plots, examples, gates, and how everything was measured."""
    sections = [
        _head(report),
        _section("Summary", _summary(report)),
        _section("Accuracy", _accuracy(report)),
        _section("Latency of one request", _latency(report)),
        _section("Speedup and FLOPs", _speedup(report)),
        _section("Throughput", _throughput(report)),
        _section("Parity with PyTorch", _parity(report)),
        _section("Wrong answers and kept tokens", render_examples(report, examples)),
        _section("Gates", _gates(report)),
        _section("How this was measured", _method(report)),
    ]
    title = f"Validation of {report.task}: {report.verdict}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n{''.join(sections)}</body></html>\n"
    )


def _head(report: Report) -> str:
    subject = report.subject
    facts = [subject.model, subject.pruned_by, f"{subject.engine} engine", subject.precision]
    return (
        f'<h1>{escape(report.task)}<span class="verdict {report.verdict}">{report.verdict}</span></h1>'
        f'<p class="quiet">{escape(" · ".join(facts))} · {report.settings.questions} held-out questions · '
        f"{escape(report.device.name)}, {report.device.threads} threads · {escape(report.date)} · "
        f"commit {escape(report.commit or 'unknown')}</p>{_failures(report)}"
    )


def _failures(report: Report) -> str:
    """What failed, with figure and limit, before anything else."""
    lines = [f"<li>{escape(gate.sentence)}</li>" for gate in report.failed_gates]
    failed = f'<ul class="failures">{"".join(lines)}</ul>' if lines else ""
    return failed + "".join(f"<p>{escape(note)}</p>" for note in report.notes)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}\n</section>\n"


def _summary(report: Report) -> str:
    head = ["Kept on average", "Reference", "Engine", "Random", "Retention", "Request vs unpruned engine"]
    rows = []
    for budget in report.budgets:
        verdict = "passed" if report.passed_at(budget.budget_kept) else "failed"
        rows.append(
            [
                f"{budget.budget_kept} of {budget.visual_tokens}",
                _percent(budget.accuracy.reference),
                _percent(budget.accuracy.engine),
                _percent(budget.accuracy.random),
                _share(budget.retention, budget.retention_ci95),
                f"{budget.speedup.total_vs_engine_unpruned:.2f}×",
                f"{budget.speedup.prefill_vs_engine_unpruned:.2f}×",
                f"{budget.speedup.total_vs_reference:.2f}×",
                f'<td class="{verdict}">{verdict}</td>',
            ]
        )
    return _table([*head, "Prefill vs unpruned engine", "Request vs PyTorch", "Gates"], rows)


def _accuracy(report: Report) -> str:
    names = {"reference": GREY, "pruned_reference": BLUE, "engine": GREEN, "random": AMBER}
    labels = {"reference": "PyTorch, unpruned", "pruned_reference": "PyTorch, pruned", "engine": "engine, pruned"}
    series = []
    for name, colour in names.items():
        figures: list[Accuracy] = [getattr(budget.accuracy, name) for budget in report.budgets]
        values, spans = tuple(one.value for one in figures), tuple(one.ci95 for one in figures)
        series.append(Series(labels.get(name, "PyTorch, random pruning"), colour, values, spans))
    chart = dot_chart("Accuracy by budget", _budget_labels(report), series)
    return f"<p>{escape(report.metric)} (%), with 95% intervals, on the same questions.</p><figure>{chart}</figure>"


def _latency(report: Report) -> str:
    medians, spreads = (_timed_sessions(report, name) for name in ("latency_ms", "latency_iqr_ms"))
    names, times = [name for name, _ in medians], [one for _, one in medians]
    tokens = report.settings.generated_tokens
    series = [
        Series("vision", GREY, tuple(one.vision for one in times)),
        Series("prefill", BLUE, tuple(one.prefill for one in times)),
        Series(f"{tokens - 1} decode steps", AMBER, tuple(one.decode_per_token * (tokens - 1) for one in times)),
    ]
    rows = []
    for (name, median), (_, spread) in zip(medians, spreads, strict=True):
        parts = ("vision", "prefill", "decode_per_token", "total")
        cells = [f"{getattr(median, part):.2f} {_quiet(f'± {getattr(spread, part) / 2:.2f}')}" for part in parts]
        rows.append([name, *cells])
    table = _table(["Median ms ± half the interquartile range", "Vision", "Prefill", "Per token", "Total"], rows)
    chart = stacked_bars("Latency", names, series, "ms")
    return f"<p>Medians of interleaved rounds, batch 1, {tokens} tokens.</p><figure>{chart}</figure>{table}"


def _timed_sessions(report: Report, field: str) -> list[tuple[str, Latency]]:
    """Every session once: all were measured in the same rounds, so the budgets share the two unpruned ones."""
    shared: LatencyComparison = getattr(report.budgets[0], field)
    pruned = [(f"engine, {budget.budget_kept} kept", getattr(budget, field).engine) for budget in report.budgets]
    return [("PyTorch, unpruned", shared.reference), ("engine, unpruned", shared.engine_unpruned), *pruned]


def _speedup(report: Report) -> str:
    rows = []
    for budget in report.budgets:
        flops = budget.flops
        graph = f"{flops.graph_unpruned / flops.graph:.2f}×" if flops.graph and flops.graph_unpruned else "not counted"
        rows.append(
            [
                f"{budget.budget_kept} of {budget.visual_tokens} {_quiet('k = ' + _counts(budget))}",
                f"{flops.formula_unpruned / flops.formula:.2f}×",
                graph,
                f"{budget.speedup.total_vs_engine_unpruned:.2f}×",
                f"{budget.speedup.prefill_vs_engine_unpruned:.2f}×",
                f"{budget.speedup.realised_share:.0%}",
                f"{budget.speedup.prefill_vs_reference:.2f}×",
                f"{budget.speedup.total_vs_reference:.2f}×",
            ]
        )
    head = ["Budget", "FLOPs ratio, formula", "FLOPs ratio, graph", "Request vs unpruned engine"]
    head += ["Prefill vs unpruned engine", "Realised share"]
    return _table([*head, "Prefill vs PyTorch", "Request vs PyTorch"], rows)


def _throughput(report: Report) -> str:
    points = report.budgets[0].throughput
    if not points:
        return f"<p>Not measured.</p>{_memory(report)}"
    series = [
        Series("PyTorch, unpruned", GREY, tuple(point.reference for point in points)),
        Series("engine, unpruned", LIGHT, tuple(point.engine_unpruned for point in points)),
    ]
    for place, budget in enumerate(report.budgets):
        shade = GREENS[place % len(GREENS)]
        values = tuple(point.engine for point in budget.throughput)
        series.append(Series(f"engine, {budget.budget_kept} kept", shade, values))
    chart = column_chart("Requests per second", [f"batch {point.batch}" for point in points], series)
    return f"<p>Whole requests per second.</p><figure>{chart}</figure>{_memory(report)}"


def _memory(report: Report) -> str:
    rows = []
    for budget in report.budgets:
        peak = budget.peak_memory_bytes
        if peak is not None:
            sizes = [f"{size / 2**20:.0f} MiB" for size in (peak.reference, peak.engine_unpruned, peak.engine)]
            rows.append([f"at {budget.budget_kept} kept", *sizes])
    return _table(["Peak memory", "PyTorch, unpruned", "Engine, unpruned", "Engine, pruned"], rows) if rows else ""


def _parity(report: Report) -> str:
    rows = []
    for budget in report.budgets:
        parity = budget.parity
        overlap = ", ".join(f"{share:.2%}" for share in parity.kept_overlap_per_stage)
        free, forced = (_scientific(error) for error in (parity.logit_error_free, parity.logit_error_forced))
        rows.append([str(budget.budget_kept), overlap, free, forced, f"{parity.greedy_agreement:.2%}", str(parity.n)])
    head = ["Budget", "Kept sets that agree, per stage", "Logit error", "Logit error, forced selection"]
    return _table([*head, "Equal tokens", "Questions"], rows)


def _gates(report: Report) -> str:
    rows = []
    for gate in report.gates:
        outcome = "passed" if gate.passed else "failed"
        measured = "not measurable" if gate.measured is None else f"{gate.measured:.4g}"
        kept = "all" if gate.budget_kept is None else str(gate.budget_kept)
        cells = [kept, f'<td class="text">{escape(gate.name)}</td>', measured, escape(gate.wanted)]
        rows.append([*cells, f'<td class="{outcome}">{outcome}</td>'])
    return _table(["Budget", "Gate", "Measured", "Wanted", "Outcome"], rows) if rows else "<p>None was set.</p>"


def _method(report: Report) -> str:
    settings, subject, device, stock = report.settings, report.subject, report.device, report.stock_parity
    notes = [
        "The reference is the stock Hugging Face model without pruning (sdpa attention, DynamicCache). The pruned "
        "reference and random pruning run the same model in PyTorch with the tokens gathered at each stage.",
        f"All four answer the same {settings.questions} questions ({settings.split}) by generating text. Intervals of "
        "an accuracy are Wilson's; retention and the gap to random have paired bootstrap intervals.",
        f"Times: {settings.warmup} rounds of warm-up, {settings.iterations} rounds in which all answer "
        f"the same question in turn ({settings.prompt_tokens} prompt tokens, {settings.generated_tokens} generated), "
        f"{device.threads} CPU threads each. Speedups are ratios of the medians.",
        "Peak memory, measured where all run on the CPU, is the highest resident size of a fresh process, libraries "
        "included, that loads one model or engine and answers one request; a page of a file that several graphs map "
        "counts once.",
        f"The unpruned engine and the stock model, by its own processor, forward and generate, were asked {stock.n} "
        f"questions: logits differ by {_scientific(stock.logit_error)} at most, {stock.agreement:.2%} of the greedy "
        "tokens are equal.",
        "Logit errors are the largest absolute difference of the prefill's last-position logits.",
    ]
    facts = {
        "Command": f"<code>{escape(report.command)}</code>",
        "Bundle": f"<code>{escape(subject.bundle)}</code>",
        "Manifest SHA-256": f"<code>{subject.manifest_sha256}</code>",
        "Model fingerprint": f"<code>{subject.model_fingerprint}</code>",
        "Agent fingerprint": f"<code>{subject.agent_fingerprint or 'none, a baseline'}</code>",
        "Device": escape(f"{device.name}, {device.cores} cores, {device.platform}"),
        "Versions": escape(", ".join(f"{name} {version}" for name, version in report.versions.items())),
        "Seed": str(report.seed),
    }
    listed = "".join(f"<tr><td>{name}</td><td class='text'>{value}</td></tr>" for name, value in facts.items())
    return "".join(f"<p>{escape(note)}</p>" for note in notes) + f"<table>{listed}</table>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; one that starts with ``<td`` is the whole element."""
    top = "".join(f"<th{' class=text' if name == 'Gate' else ''}>{escape(name)}</th>" for name in head)
    body = []
    for row in rows:
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        body.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _budget_labels(report: Report) -> list[str]:
    return [f"{budget.budget_kept} of {budget.visual_tokens} kept" for budget in report.budgets]


def _counts(budget: BudgetReport) -> str:
    return ", ".join(map(str, budget.keep_counts))


def _percent(figure: Accuracy) -> str:
    f1 = "" if figure.f1 is None else f" {_quiet(f'F1 {figure.f1:.1%}')}"
    return _share(figure.value, figure.ci95) + f1


def _share(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "not measurable"
    spread = _quiet(f"{interval[0] * 100:.1f} to {interval[1] * 100:.1f}") if interval else ""
    return f"{value:.1%} {spread}"


def _scientific(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.1e}"


def _quiet(text: str) -> str:
    return f'<span class="quiet">{escape(text)}</span>'
