"""What the figures look like: some wrong answers, and pictures of the tokens that were kept for them."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from toprl_export.errors import UserError
from toprl_export.evaluation.kept_tokens import KeptTokens
from toprl_export.evaluation.overlay import draw, png_bytes
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS
from toprl_export.runtime.generation import GenerationRequest, generate
from toprl_export.validation.bench import Bench
from toprl_export.validation.report import Report

PICTURES = 3
"""About 230 kB each where scenes have texture, in a page that is one file."""


@dataclass(frozen=True)
class Example:
    """One question at one budget as a PNG file's content; ``reason`` says why there is none."""

    budget_kept: int
    question: str
    png: bytes | None
    reason: str = ""


def draw_examples(bench: Bench, report: Report) -> tuple[Example, ...]:
    """Kept tokens at the smallest budget: of wrongly answered questions first, then of the first ones asked."""
    budget = min(report.budgets, key=lambda one: one.budget_kept)
    wrong = [answer.index for answer in budget.wrong_answers]
    others = [index for index in range(len(bench.samples)) if index not in wrong]
    return tuple(_example(bench, budget.budget_kept, index) for index in [*wrong, *others][:PICTURES])


def _example(bench: Bench, budget_kept: int, index: int) -> Example:
    sample, session = bench.samples[index], bench.at_budget(budget_kept)
    (batch,) = bench.batches_of([sample], 1)
    manifest = bench.bundle.manifest
    request = GenerationRequest(
        batch.pictures,
        batch.tokens,
        session.keep_counts,
        session.agent_index,
        DEFAULT_NEW_TOKENS,
        manifest.model.end_tokens,
    )
    answered = generate(session.session, bench.frontend.tokenizer, request)
    tokens = KeptTokens(
        image=bench.frontend.shown(sample.image),
        visual_tokens=manifest.model.visual_tokens,
        kept=tuple(kept[0] for kept in answered.kept),
        sites=tuple(str(stage.site) for stage in manifest.plan.stages),
        question=sample.question,
        answer=answered.answers[0],
        expected=sample.answer,
    )
    try:
        return Example(budget_kept, sample.question, png_bytes(draw(tokens)))
    except UserError as error:  # tokens that form no grid: the figures hold all the same
        return Example(budget_kept, sample.question, None, str(error))


def render_examples(report: Report, examples: Sequence[Example]) -> str:
    """The section's HTML: a table of wrong answers, then the pictures."""
    return _wrong_answers(report) + "".join(_figures(examples))


def _wrong_answers(report: Report) -> str:
    rows = [
        (f"{budget.budget_kept}", one.question, one.expected, one.engine, one.reference)
        for budget in report.budgets
        for one in budget.wrong_answers
    ]
    if not rows:
        return "<p>The engine answered every question right at every budget.</p>"
    head = "".join(f"<th class='text'>{name}</th>" for name in ("Kept", "Question", "Expected", "Engine", "Reference"))
    cells = ("".join(f"<td class='text'>{escape(cell) or '(none)'}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    note = "<p>Questions that the engine answered wrong, the first of each budget; the reference is unpruned.</p>"
    return f"{note}<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _figures(examples: Sequence[Example]) -> Iterator[str]:
    for one in examples:
        if one.png is None:
            yield f"<p>No picture: {escape(one.reason)}</p>"
            continue
        about = escape(f"tokens kept at {one.budget_kept}: {one.question}", quote=True)
        data = base64.b64encode(one.png).decode()
        yield f'<figure class="picture"><img alt="{about}" src="data:image/png;base64,{data}"></figure>'
