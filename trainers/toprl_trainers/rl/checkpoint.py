"""Checkpoints: a learner's whole state in one safetensors file, with a header that says which run it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.fields import read_fields, to_json
from toprl_export.files import write_bytes_atomic
from toprl_export.models.adapter import weight_fingerprint

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_METADATA_KEY = "toprl_export"
_DIGEST_KEY = "toprl_export_tensors"


def write_checkpoint(path: Path, header: DataclassInstance, tensors: Mapping[str, Tensor]) -> None:
    """Write everything to ``path`` at once, so that it holds this state or the one before, never parts of both.

    Args:
        path: the file.
        header: what belongs to no tensor, with the learner's ``format`` and ``version``.
        tensors: on any device.

    Raises:
        UserError: it cannot be written.
    """
    metadata = json.dumps(to_json(header), allow_nan=False)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes_atomic(path, save(stored, {_METADATA_KEY: metadata, _DIGEST_KEY: weight_fingerprint(stored)}))


def read_checkpoint_header(kind: type[T], path: Path) -> T:
    """What `write_checkpoint` took as the header, of the dataclass ``kind``.

    Raises:
        UserError: the file is damaged, or of another format or version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_METADATA_KEY, "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(path, error) from error
    return read_fields(kind, header, path, "delete it to start over")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU.

    Raises:
        UserError: the file is damaged or was changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get(_DIGEST_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not iterable)
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from error
    if weight_fingerprint(tensors) != stated:
        raise UserError(f"{path} was changed (its tensors' SHA-256 is not the stated one): delete it to start over")
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's moments, named ``parameter number.moment``; its settings are the run's and are not stored."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, moments in state.items() for name, tensor in moments.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `optimizer_tensors` gave for parameters of the same shapes."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, moment = name.partition(".")
        state.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, their names lengthened."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `with_prefix` named so, by their own names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def damaged(path: Path, error: Exception) -> UserError:
    """What to raise about a file that does not hold what its learner needs."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} does not hold an interrupted run ({reason}): delete it to start over")
