"""A trainer that writes untrained agents at once, and records its requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tests.support.agents import save_tiny_agent
from toprl_export.errors import UserError
from toprl_export.trainer import TrainOutcome, TrainRequest


class FakeTrainer:
    """Its recipes may set ``stage_layers`` and ``fails``; an agent is up to date if its recipe reads the same."""

    trained: ClassVar[list[str]] = []

    def train(self, request: TrainRequest) -> TrainOutcome:
        recipe: dict[str, Any] = yaml.safe_load(Path(str(request.recipe)).read_text())
        directory, note = request.output_dir, request.output_dir / "recipe.json"
        settings = [recipe, request.budgets_kept, request.seed, request.task.name, request.updates]
        if note.is_file():
            if json.loads(note.read_text()) == json.loads(json.dumps(settings)):
                return TrainOutcome("up-to-date", directory, "")
            raise UserError(f"{directory} already holds an earlier result: add --overwrite to replace it")
        if request.dry_run:
            return TrainOutcome("dry-run", directory, "")
        if recipe["settings"].get("fails"):
            raise UserError("a reward is not a number")
        save_tiny_agent(
            directory,
            request.adapter,
            request.task.name,
            request.budgets_kept,
            tuple(recipe["settings"].get("stage_layers", (0, 2))),
            seed=request.seed,
        )
        note.write_text(json.dumps(settings))
        self.trained.append("/".join(directory.parts[-3:]))
        return TrainOutcome("trained", directory, "")
