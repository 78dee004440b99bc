"""By how much agents are above what needs no training, question by question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from toprl_export.compare.findings import Findings, contender
from toprl_export.compare.request import RANDOM
from toprl_export.compare.result import Margin, RivalRole
from toprl_export.evaluation.estimates import Estimate, Resampled, mean_difference

BEST_OF_EACH = "best of each task"


def all_margins(findings: Findings) -> tuple[Margin, ...]:
    """Every agent method at every budget, on each task and on average.

    On a task the rivals are the baseline that did best there and random pruning. On average they are the best of each
    task (no single method), the one baseline that did best on average, and random pruning. The best is picked by the
    same answers that it is then compared on, which favours it.
    """
    agents = [one for one in findings.contenders if findings.kinds[one[0]] == "agent"]
    return tuple(
        margin
        for method, budget in agents
        for margin in (*_by_task(findings, method, budget), *_on_average(findings, method, budget))
    )


def best_baseline(findings: Findings, budget: int, tasks: Sequence[str]) -> str | None:
    """The baseline of the highest mean accuracy among those measured on all of ``tasks``; the first of equals."""
    rivals = [
        method
        for method, at in findings.contenders
        if at == budget and findings.kinds[method] == "baseline" and findings.has(method, budget, tasks)
    ]

    def mean(method: str) -> float:
        return float(np.mean([findings.drawn[task].means[contender(method, budget)] for task in tasks]))

    return max(rivals, key=mean, default=None)


def _by_task(findings: Findings, method: str, budget: int) -> Iterator[Margin]:
    own = contender(method, budget)
    for task in findings.tasks:
        if not findings.has(method, budget, [task]):
            continue
        rivals: dict[RivalRole, str | None] = {
            "best baseline": best_baseline(findings, budget, [task]),
            "random": RANDOM if findings.has(RANDOM, budget, [task]) else None,
        }
        for role, rival in rivals.items():
            if rival is not None:
                difference = findings.drawn[task].difference(own, contender(rival, budget))
                yield _margin(method, rival, role, task, budget, difference)


def _on_average(findings: Findings, method: str, budget: int) -> Iterator[Margin]:
    if not findings.has(method, budget):
        return
    own, drawn = contender(method, budget), [findings.drawn[task] for task in findings.tasks]
    best = [best_baseline(findings, budget, [task]) for task in findings.tasks]
    pairs = [
        _pair(one, own, contender(rival, budget)) for one, rival in zip(drawn, best, strict=True) if rival is not None
    ]
    if len(pairs) == len(findings.tasks):
        difference = mean_difference(pairs, own, BEST_OF_EACH)
        yield _margin(method, BEST_OF_EACH, "best baseline", None, budget, difference)
    rivals: dict[RivalRole, str | None] = {
        "best baseline on average": best_baseline(findings, budget, findings.tasks),
        "random": RANDOM if findings.has(RANDOM, budget) else None,
    }
    for role, rival in rivals.items():
        if rival is not None:
            yield _margin(method, rival, role, None, budget, mean_difference(drawn, own, contender(rival, budget)))


def _margin(method: str, rival: str, role: RivalRole, task: str | None, budget: int, difference: Estimate) -> Margin:
    low, high = difference.ci95
    return Margin(method, rival, role, task, budget, difference, not low <= 0 <= high)


def _pair(drawn: Resampled, own: str, rival: str) -> Resampled:
    """Two contenders of a task, the rival under the name that the best of every task has in common."""
    names = {own: own, BEST_OF_EACH: rival}
    return Resampled(
        {name: drawn.means[source] for name, source in names.items()},
        {name: drawn.draws[source] for name, source in names.items()},
    )
