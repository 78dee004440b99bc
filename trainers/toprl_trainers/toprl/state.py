"""Everything a run needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.fields import read_fields, to_json
from toprl_export.files import write_bytes_atomic
from toprl_export.pruning.actor import Actor, ActorConfig, Critic
from toprl_export.seeding import derive_seed

_METADATA_KEY = "toprl_export"


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says about its run.

    Attributes:
        digest: of the run's settings.
        thresholds: the fixed ones; None where each image has its own.
        seconds: spent so far.
        threads: CPU threads of PyTorch, on which the last bits of its sums depend.
    """

    format: Literal["toprl-export/toprl-training"] = field(default="toprl-export/toprl-training", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    digest: str
    thresholds: tuple[float, ...] | None
    seconds: float
    threads: int


@dataclass
class TrainingState:
    """The learner between two updates. Changed in place by training.

    Random streams are derived anew for every update from the seed and the update's number, so there is no generator to
    carry on. ``curves`` has one row of figures an update; ``thresholds`` are the fixed ones, None where each image has
    its own; ``seconds`` is the time spent so far.
    """

    actor: Actor
    critic: Critic
    optimizer: torch.optim.Adam
    thresholds: tuple[float, ...] | None = None
    curves: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def update(self) -> int:
        """Updates done."""
        return len(self.curves)

    @classmethod
    def fresh(cls, config: ActorConfig, learning_rate: float, seed: int, device: torch.device) -> TrainingState:
        """Untrained networks; the global random state stays as it was."""
        with torch.random.fork_rng(devices=()):
            # torch.manual_seed would reseed the GPUs' generators too, which are neither used here nor restored.
            torch.default_generator.manual_seed(derive_seed(seed, "toprl", "weights"))
            actor, critic = Actor(config).to(device), Critic(config).to(device)
        optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=learning_rate)
        return cls(actor, critic, optimizer)

    def save(self, path: Path, digest: str) -> None:
        """Write everything to ``path`` at once, so that it holds this state or the one before, never parts of both.

        Args:
            path: the file.
            digest: of the run's settings, which must be the same when it is loaded.

        Raises:
            UserError: it cannot be written.
        """
        header = CheckpointHeader(digest, self.thresholds, self.seconds, torch.get_num_threads())
        metadata = {_METADATA_KEY: json.dumps(to_json(header), allow_nan=False)}
        write_bytes_atomic(path, save(self._tensors(), metadata))

    def load(self, path: Path) -> None:
        """Take over what `save` wrote for networks of the same sizes.

        Raises:
            UserError: the file does not hold them.
        """
        header = read_checkpoint_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not iterable)
            self.actor.load_state_dict(_part(tensors, "actor."))
            self.critic.load_state_dict(_part(tensors, "critic."))
            self.optimizer.load_state_dict(self._optimizer_state(_part(tensors, "adam.")))
            self.curves = tensors["curves"].tolist()
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise _damaged(path, error) from error
        self.thresholds, self.seconds = header.thresholds, header.seconds

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"actor.{name}": tensor for name, tensor in self.actor.state_dict().items()}
        tensors |= {f"critic.{name}": tensor for name, tensor in self.critic.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": tensor for name, tensor in moments.items()}
        tensors["curves"] = torch.tensor(self.curves, dtype=torch.float64)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def _optimizer_state(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        return {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}


def read_checkpoint_header(path: Path) -> CheckpointHeader:
    """What a checkpoint says about its run.

    Raises:
        UserError: the file is damaged, or of another format or version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_METADATA_KEY, "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path, error) from error
    return read_fields(CheckpointHeader, header, path, "delete it to train anew")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _damaged(path: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} does not hold an interrupted run ({reason}): delete it to train anew")


def column_names(stages: int) -> Sequence[str]:
    """Names of the figures in a row of ``curves``."""
    kept = [f"kept_stage_{stage + 1}" for stage in range(stages)]
    return (
        "update", "temperature", "reward", "quality", *kept, "entropy", "explained_variance", "kl", "clipped",
        "policy_loss", "value_loss",
    )  # fmt: skip
