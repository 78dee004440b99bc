"""A cell of a comparison: one method at one budget on one task, with one seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toprl_export.errors import UserError
from toprl_export.evaluation.answering import BATCH, MAX_NEW_TOKENS
from toprl_export.evaluation.cells import Result, answered_by
from toprl_export.tasks.task import Split

SPLIT: Final[Split] = "held-out"
UNPRUNED = "unpruned"
CELLS_FOLDER = "cells"

Kind: TypeAlias = Literal["unpruned", "baseline", "oracle", "agent"]


@dataclass(frozen=True)
class Setting:
    """What all cells of a comparison share.

    Attributes:
        model: the reference model's name, path or hub id.
        model_fingerprint: of all that its answers depend on, see `LVLMAdapter.answering_fingerprint`.
        device: where it runs, "cpu", "cuda" or "cuda:N".
        dtype: of its weights, as torch names it.
        seed: of the questions drawn and of random pruning.
    """

    model: str
    model_fingerprint: str
    device: str
    dtype: str
    seed: int


@dataclass(frozen=True)
class Cell:
    """What is measured, and with what.

    Attributes:
        setting: what it shares with the other cells.
        method: its name in the comparison.
        kind: what sort of method it is.
        scorer: an agent's fingerprint, a baseline's name, or "unpruned".
        task: whose questions are answered.
        questions: how many, the first of the held-out draw.
        questions_digest: SHA-256 over the first of them, so that a task whose data changed is another one.
        budget_kept: average visual tokens kept that was asked for; n where nothing is pruned.
        stage_layers: decoder layers before which tokens are dropped.
        keep_counts: visual tokens left after each stage.
        average_kept: what these counts average over all layers.
        seed: an agent's, or the number of the draw of random pruning; 0 for what is deterministic.
        agent: the agent's directory.
    """

    setting: Setting
    method: str
    kind: Kind
    scorer: str
    task: str
    questions: int
    questions_digest: str
    budget_kept: int
    stage_layers: tuple[int, ...]
    keep_counts: tuple[int, ...]
    average_kept: float
    seed: int
    agent: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the answers depend on, as `toprl_export.evaluation.cells.Cell` asks: what the method is
        called and where model and agent lie is no part of it."""
        own = {name: value for name, value in asdict(self).items() if name not in ("setting", "method", "agent")}
        shared = {name: value for name, value in asdict(self.setting).items() if name != "model"}
        return {
            "what": "compare",
            **own,
            "setting": shared,
            "split": SPLIT,
            "batch": BATCH,
            "max_new_tokens": MAX_NEW_TOKENS,
            "answered_by": answered_by(),
        }

    def result(self, scores: list[float]) -> Result:
        """What is kept of the questions' scores, 0 or 1 each: ``right``, a text of as many digits."""
        return {"right": "".join(str(int(score)) for score in scores)}

    def outcomes(self, result: Result) -> NDArray[np.float64]:
        """The scores behind a kept result, ``float64 [questions]``.

        Raises:
            UserError: it is not what :meth:`result` makes.
        """
        right = result.get("right")
        if not isinstance(right, str) or len(right) != self.questions or set(right) - {"0", "1"}:
            raise UserError(
                f"the kept result of {self.method} on {self.task} is not {self.questions} digits of 0 or 1: "
                f"delete the folder {CELLS_FOLDER} to have it measured again"
            )
        return np.array([int(digit) for digit in right], dtype=np.float64)
