"""Training in several processes: which images are whose, sums over all processes, and errors that end them all."""

from __future__ import annotations

import atexit
import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from textwrap import shorten

import torch
from torch import Tensor, nn

from toprl_export.errors import UserError, require
from toprl_export.seeding import derive_seed

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long a process waits for another one, such as for the main one while that validates."""

MAX_MESSAGE_BYTES = 4000
"""How much of an error's message reaches the other processes."""


class ReportedByMainProcess(SystemExit):
    """Ends a process silently: the main process reports the error and sets the exit code."""

    def __init__(self) -> None:
        super().__init__(0)


@dataclass(frozen=True)
class Processes:
    """The processes that train one agent; as made without arguments, a single one.

    Each holds the whole learner and plays the rollouts of its shard of every update's images. All that they exchange is
    summed, so that every process holds the same bits afterwards.

    Attributes:
        index: rank of this process; 0 is the main one, which alone writes, reports and validates.
        count: how many there are (the world size).
        device: where tensors must be to be summed.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the one that writes, reports and validates."""
        return self.index == 0

    def shard(self, items: int) -> range:
        """Which of ``items`` are this process's: consecutive ones, as many as any other's or one more or less."""
        return range(items * self.index // self.count, items * (self.index + 1) // self.count)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every process's ``x``; all shapes and dtypes must agree.

        Raises:
            UserError: another process ended early (in the main process; the others end silently).
        """
        if self.count == 1:
            return x
        from accelerate.utils import reduce

        try:
            summed: Tensor = reduce(x, reduction="sum")
        except RuntimeError as error:
            reason = shorten(str(error) or type(error).__name__, 160)
            raise self.collective_error(
                f"the processes of this training lost contact, so one may have ended early ({reason}): repeat the "
                "command to resume"
            ) from error
        return summed

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter], figures: Tensor) -> Tensor:
        """Replace every gradient by the sum of all processes', so that all take the same optimizer step.

        Args:
            parameters: the same in all processes.
            figures: ``float32 [k]``, summed with them.

        Returns:
            the sum of ``figures``.

        Raises:
            UserError: as `all_reduce`.
        """
        if self.count == 1:
            return figures
        gradients = [each.grad for each in parameters if each.grad is not None]
        # One collective call for everything: many small ones would each pay the latency.
        summed = self.all_reduce(torch.cat([figures, nn.utils.parameters_to_vector(gradients)]))
        nn.utils.vector_to_parameters(summed[len(figures) :], gradients)
        return summed[: len(figures)]

    @contextmanager
    def collective_errors(self) -> Iterator[None]:
        """Run what may fail in one process, and go on only if it failed in none; nothing in the block may all-reduce.

        Without it a process that fails alone would leave the others waiting in their next collective call.

        Raises:
            UserError: the error of the first failing process (in the main process; the others end silently).
        """
        problem: UserError | None = None
        try:
            yield
        except UserError as error:
            if self.count == 1:
                raise
            problem = error
        if self.count > 1:
            self._raise_first(problem)

    def check_same(self, what: str, value: object) -> None:
        """Refuse to go on where processes differ, as they do on machines that do not share a disk.

        Args:
            what: to be named to the user.
            value: compared by its text.

        Raises:
            UserError: they differ (in the main process; the others end silently).
        """
        found = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        found[self.index] = derive_seed(0, str(value))
        if len(set(self.all_reduce(found).tolist())) > 1:
            raise self.collective_error(
                f"the processes of this training do not find the same {what}: give all the same command and weights, "
                "and an output directory on a disk that all share"
            )

    def check_device(self, device: torch.device) -> None:
        """Refuse a model that is not where the processes were launched to compute.

        Raises:
            UserError: it is not.
        """
        if self.count > 1 and device.type != self.device.type:
            raise UserError(
                f"the processes were launched for {self.device.type}, but the model is on {device.type}: "
                f"add --device {self.device.type}, or set ACCELERATE_USE_CPU=true to train on CPUs"
            )
        if self.count > 1 and device.index is not None and device.index != self.device.index:
            raise UserError(
                f"process {self.index} was launched for {self.device}, but its model is on {device}: leave out the "
                f"GPU's number, --device {device.type} gives each process its own"
            )

    def collective_error(self, message: str) -> UserError | ReportedByMainProcess:
        """What to raise where all processes meet the same error, so that it is reported once."""
        return UserError(message) if self.main else ReportedByMainProcess()

    def _raise_first(self, problem: UserError | None) -> None:
        """Let all processes know the first one's error; sums carry it, for they are all that is exchanged."""
        failed = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        failed[self.index] = int(problem is not None)
        failures = self.all_reduce(failed).nonzero().flatten().tolist()
        if not failures:
            return
        text = str(problem).encode()[:MAX_MESSAGE_BYTES] if self.index == failures[0] else b""
        message = torch.zeros(MAX_MESSAGE_BYTES, dtype=torch.int64, device=self.device)
        message[: len(text)] = torch.tensor(list(text), dtype=torch.int64, device=self.device)
        reported = bytes(self.all_reduce(message).tolist()).rstrip(b"\0").decode(errors="ignore")
        raise self.collective_error(reported) from problem


SINGLE_PROCESS = Processes()


@dataclass(frozen=True)
class Shard:
    """The images of an update whose rollouts this process plays: ``part`` of ``images`` in all."""

    processes: Processes
    part: range
    images: int

    @classmethod
    def whole(cls, images: int) -> Shard:
        """All images, for a single process."""
        return cls(SINGLE_PROCESS, range(images), images)

    def gather(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch rows of all processes in the images' order, bit for bit: ``float32 [b]`` or ``[b, T]`` each.

        Args:
            mine: this process's rows, equally many for each of its images.
        """
        if self.processes.count == 1:
            return dict(mine)
        joined = torch.cat([x.flatten(1) if x.ndim > 1 else x[:, None] for x in mine.values()], dim=1)
        group = len(joined) // len(self.part)
        # A sum whose other terms are all zero is exact, so all-reduce gathers shards of unequal lengths.
        every = joined.new_zeros(self.images * group, joined.shape[1])
        every[self.part.start * group : self.part.stop * group] = joined
        widths = [x[0].numel() for x in mine.values()]
        parts = torch.split_with_sizes(self.processes.all_reduce(every), widths, dim=1)
        return {name: part.reshape(-1, *x.shape[1:]) for (name, x), part in zip(mine.items(), parts, strict=True)}


def launched_processes() -> Processes:
    """Join the processes that ``accelerate launch`` or ``torchrun`` started; `SINGLE_PROCESS` without a launcher.

    Raises:
        MissingExtraError: several were launched and accelerate is not installed.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return SINGLE_PROCESS
    accelerate = require("accelerate", "train")
    # Its functions take the group of the moment they are defined as a default argument. Imported later, as loading a
    # model does, they would keep the group alive after its end.
    importlib.import_module("torch.distributed.nn.functional")
    timeout = accelerate.utils.InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)
    joined = accelerate.Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[timeout])
    # The group's threads must end before the interpreter does: one that lets go of a summed tensor later needs Python
    # for it, and aborts the process.
    atexit.register(joined.end_training)
    return Processes(joined.process_index, joined.num_processes, joined.device)
