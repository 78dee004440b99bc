"""Training in several processes: which part is whose, sums over all of them, and ending together."""

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

PATIENCE = timedelta(hours=2)
"""How long a process waits for another one, such as for the main one while that validates."""

LONGEST_MESSAGE = 4000
"""Bytes of an error's message that reach the other processes."""


class ToldElsewhere(SystemExit):
    """Ends a process without a word: the main process says why, and with which exit code."""

    def __init__(self) -> None:
        super().__init__(0)


@dataclass(frozen=True)
class Processes:
    """The processes that train one agent; as made without arguments, the only one.

    Each holds the whole learner and plays a part of every update's images. What goes between them is summed, so all
    of them hold the same bits afterwards.

    Attributes:
        index: number of this process; 0 is the main one, which alone writes, reports and validates.
        count: how many there are.
        device: where tensors must be to be summed.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the one that writes, reports and validates."""
        return self.index == 0

    def part(self, things: int) -> range:
        """Which of ``things`` are this process's: successive ones, as many as any other's or one more or less."""
        return range(things * self.index // self.count, things * (self.index + 1) // self.count)

    def total(self, x: Tensor) -> Tensor:
        """The sum of every process's ``x``; all shapes and types must be alike.

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
            raise self.ending(
                f"the processes of this training lost each other, so one may have ended early ({reason}): repeat the "
                "command to resume"
            ) from error
        return summed

    def total_gradients(self, parameters: Iterable[nn.Parameter], figures: Tensor) -> Tensor:
        """Replace every gradient by the sum of all processes', so that all take the same optimizer step.

        Args:
            parameters: alike in all processes.
            figures: ``float32 [k]``, summed with them.

        Returns:
            the sum of ``figures``.

        Raises:
            UserError: as `total`.
        """
        if self.count == 1:
            return figures
        gradients = [each.grad for each in parameters if each.grad is not None]
        summed = self.total(torch.cat([figures, nn.utils.parameters_to_vector(gradients)]))
        nn.utils.vector_to_parameters(summed[len(figures) :], gradients)
        return summed[: len(figures)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run what a single process may fail at, and go on only if none did; nothing in the block may sum.

        Raises:
            UserError: what the first failing process met (in the main process; the others end silently).
        """
        problem: UserError | None = None
        try:
            yield
        except UserError as error:
            if self.count == 1:
                raise
            problem = error
        if self.count > 1:
            self._agree(problem)

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
        if len(set(self.total(found).tolist())) > 1:
            raise self.ending(
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
                f"process {self.index} was launched for {self.device}, but its model is on {device}: name no GPU, "
                f"--device {device.type} gives each process its own"
            )

    def _agree(self, problem: UserError | None) -> None:
        failed = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        failed[self.index] = int(problem is not None)
        failures = self.total(failed).nonzero().flatten().tolist()
        if not failures:
            return
        text = str(problem).encode()[:LONGEST_MESSAGE] if self.index == failures[0] else b""
        message = torch.zeros(LONGEST_MESSAGE, dtype=torch.int64, device=self.device)
        message[: len(text)] = torch.tensor(list(text), dtype=torch.int64, device=self.device)
        said = bytes(self.total(message).tolist()).rstrip(b"\0").decode(errors="ignore")
        raise self.ending(said) from problem

    def ending(self, message: str) -> UserError | ToldElsewhere:
        """What to raise where all processes meet the same mistake, so that it is told once."""
        return UserError(message) if self.main else ToldElsewhere()


ALONE = Processes()


@dataclass(frozen=True)
class Share:
    """The part of an update's images that a process plays: those in ``part``, of ``images`` in all."""

    processes: Processes
    part: range
    images: int

    @classmethod
    def everything(cls, images: int) -> Share:
        """All of them, where there is one process."""
        return cls(ALONE, range(images), images)

    def rows(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every process's rows in the images' order, bit for bit: ``float32 [b]`` or ``[b, T]`` each.

        Args:
            mine: this process's, equally many for each of its images.
        """
        if self.processes.count == 1:
            return dict(mine)
        joined = torch.cat([x.flatten(1) if x.ndim > 1 else x[:, None] for x in mine.values()], dim=1)
        group = len(joined) // len(self.part)
        every = joined.new_zeros(self.images * group, joined.shape[1])
        every[self.part.start * group : self.part.stop * group] = joined
        widths = [x[0].numel() for x in mine.values()]
        parts = torch.split_with_sizes(self.processes.total(every), widths, dim=1)
        return {name: part.reshape(-1, *x.shape[1:]) for (name, x), part in zip(mine.items(), parts, strict=True)}


def launched_processes() -> Processes:
    """Join the processes that ``accelerate launch`` or ``torchrun`` started; `ALONE` where none were launched.

    Raises:
        MissingExtraError: several were launched and accelerate is not installed.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return ALONE
    accelerate = require("accelerate", "train")
    # Its functions take the group of the moment they are defined as a default argument. Imported later, as loading a
    # model does, they would keep the group alive after its end.
    importlib.import_module("torch.distributed.nn.functional")
    patience = accelerate.utils.InitProcessGroupKwargs(timeout=PATIENCE)
    joined = accelerate.Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    # The group's threads must end before the interpreter does: one that lets go of a summed tensor later needs Python
    # for it, and aborts the process.
    atexit.register(joined.end_training)
    return Processes(joined.process_index, joined.num_processes, joined.device)
