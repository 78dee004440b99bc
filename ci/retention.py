"""Measure retention on the embedded tasks and join it into one table; ci/retention.sh trains and builds before."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

import torch

from toprl_export.api import LoadedBundle, load
from toprl_export.files import write_json_atomic, write_text_atomic
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.random import RandomScorer
from toprl_export.seeding import derive_seed
from toprl_export.tasks.metrics import Interval, retention_interval, wilson_interval
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Sample

FORMAT, VERSION = "toprl-export/retention", 1
BATCH, MAX_NEW_TOKENS = 20, 16
HEAD = "| task | kept | unpruned | engine, pruned | random | retention | retention by seed | engine − random |\n"
RULE = "|---|---|---|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """One task at one budget; accuracies are (share, answers): the engine's of all seeds, the others' of one run."""

    task: str
    budget_kept: int
    unpruned: tuple[float, int]
    engine: tuple[float, int]
    random: tuple[float, int]
    retention: float
    retention_ci95: Interval
    retention_by_seed: tuple[float, ...]

    def markdown(self) -> str:
        """The row of the table."""
        ways = [_share(*way) for way in (self.unpruned, self.engine, self.random)]
        kept = f"**{self.retention:.1%}** [{self.retention_ci95[0]:.1%}, {self.retention_ci95[1]:.1%}]"
        seeds = ", ".join(f"{value:.1%}" for value in self.retention_by_seed)
        gain = f"{(self.engine[0] - self.random[0]) * 100:+.1f}"
        return "| " + " | ".join([self.task, str(self.budget_kept), *ways, kept, seeds, gain]) + " |\n"


def measure(task_name: str, bundles: Sequence[Path], questions: int) -> list[Row]:
    """Unpruned and random pruning once, then the engine of every bundle, all on the same held-out questions."""
    task = TASKS.get(task_name)
    samples = tuple(task.samples("held-out", 0, questions))
    runner = ReferenceRunner(load_model())

    def right(texts: Sequence[str]) -> list[float]:
        return [task.score(text, sample.answer) for text, sample in zip(texts, samples, strict=True)]

    unpruned = right(list(reference_answers(runner, samples, None)))
    engine: dict[int, list[list[float]]] = {}
    random: dict[int, list[float]] = {}
    for directory in bundles:
        loaded = load(directory, threads=1)
        for budget in loaded.budgets:
            engine.setdefault(budget, []).append(right(list(engine_answers(loaded, samples, task_name, budget))))
            if budget not in random:
                scorer = RandomScorer(derive_seed(0, "random-pruning", budget))
                pruning = Pruning.from_plan(loaded.bundle.manifest.plan, budget, scorer)
                random[budget] = right(list(reference_answers(runner, samples, pruning)))
    return [_row(task_name, budget, unpruned, engine[budget], random[budget]) for budget in engine]


def reference_answers(runner: ReferenceRunner, samples: Sequence[Sample], pruning: Pruning | None) -> Iterator[str]:
    """Greedy answers of the PyTorch reference."""
    adapter = runner.adapter
    for batch in _batches(samples):
        prompts = [sample.question for sample in batch]
        tokens = adapter.prompt_format.tokenize(adapter.tokenizer, prompts, adapter.visual_tokens)
        visual = runner.encode_image(adapter.image_processor([sample.image for sample in batch]))
        for row in runner.generate(tokens, visual, MAX_NEW_TOKENS, pruning).tokens:
            yield adapter.tokenizer.decode(row)


def engine_answers(loaded: LoadedBundle, samples: Sequence[Sample], task: str, budget: int) -> Iterator[str]:
    """Greedy answers of the bundle's engine."""
    for batch in _batches(samples):
        images, prompts = [sample.image for sample in batch], [sample.question for sample in batch]
        yield from loaded.generate(images, prompts, task, budget, MAX_NEW_TOKENS).answers


def _batches(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), BATCH):
        yield samples[start : start + BATCH]


def _row(task: str, budget: int, unpruned: list[float], engine: list[list[float]], random: list[float]) -> Row:
    engine_pooled = list(chain(*engine))
    pooled = retention_interval(engine_pooled, unpruned * len(engine))
    return Row(
        task=task,
        budget_kept=budget,
        unpruned=(fmean(unpruned), len(unpruned)),
        engine=(fmean(engine_pooled), len(engine_pooled)),
        random=(fmean(random), len(random)),
        retention=pooled.value,
        retention_ci95=pooled.ci95,
        retention_by_seed=tuple(fmean(seed) / fmean(unpruned) for seed in engine),
    )


def _share(value: float, n: int) -> str:
    low, high = wilson_interval(round(value * n), n)
    return f"{value:.1%} [{low:.1%}, {high:.1%}]"


def join(directory: Path) -> str:
    """All tasks' rows as one Markdown table, largest budget first, and the averages."""
    found = [json.loads(path.read_text()) for path in sorted(directory.glob("rows/*.json"))]
    rows = [Row(**row) for payload in found for row in payload["rows"]]
    budgets = sorted({row.budget_kept for row in rows}, reverse=True)
    lines = [row.markdown() for budget in budgets for row in rows if row.budget_kept == budget]
    for budget in budgets:
        values = [row.retention for row in rows if row.budget_kept == budget]
        lines.append(f"\nAverage retention at {budget} kept over {len(values)} tasks: **{fmean(values):.1%}**.\n")
    return HEAD + RULE + "".join(lines)


def main() -> None:
    """``retention.py DIR --task T``: measure one task; ``retention.py DIR``: join what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds seed-*/bundle")
    parser.add_argument("--task")
    parser.add_argument("--questions", type=int, default=500)
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    if arguments.task is None:
        text = join(directory)
        write_text_atomic(directory / "mini-retention.md", text)
        print(text)
        return
    target = directory / "rows" / f"{arguments.task}.json"
    if not target.exists():
        torch.set_num_threads(1)
        rows = measure(arguments.task, sorted(directory.glob("seed-*/bundle")), arguments.questions)
        target.parent.mkdir(exist_ok=True)
        write_json_atomic(target, {"format": FORMAT, "version": VERSION, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
