"""Runs mutations of every kind of file and judges what comes of them."""

from __future__ import annotations

import copy
import random
import resource
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import BY_SUFFIX, mutate_bytes
from tests.fuzz.targets import TARGETS, Target
from toprl_export.errors import UserError, one_line

SECONDS = 20
"""A load that takes longer hangs."""
MOST_GROWTH = 1 << 30
"""Bytes by which one load may raise the peak of memory."""
REFUSED, SAME, OTHER = "refused", "means the same", "means another"
CRASH, HANG, MEMORY, SILENT = "crash", "hang", "memory", "silent"
FAULTS = (CRASH, HANG, MEMORY, SILENT)
OUTCOMES = (REFUSED, SAME, OTHER, *FAULTS)


class _Hang(BaseException):
    """Not an Exception, so that nothing on the way takes it for a damaged file."""


@dataclass(frozen=True)
class Fault:
    """What went wrong, and how to see it again."""

    kind: str
    case: int
    outcome: str
    detail: str


@dataclass
class Findings:
    """How often each kind ended in each outcome."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def table(self) -> str:
        """One line a kind."""
        rows = [("kind", "cases", *OUTCOMES)]
        for kind, counts in self.counts.items():
            rows.append((kind, str(counts.total()), *(str(counts[outcome]) for outcome in OUTCOMES)))
        total: Counter[str] = sum(self.counts.values(), Counter())
        rows.append(("all", str(total.total()), *(str(total[outcome]) for outcome in OUTCOMES)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


class Specimen:
    """A whole one of a kind on disk, its content, and what it means."""

    def __init__(self, target: Target, directory: Path) -> None:
        directory.mkdir(parents=True)
        target.make(directory)
        self.target, self.directory = target, directory
        self.files = sorted({path for glob in target.files for path in directory.glob(glob) if path.is_file()})
        self.contents = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        self.meaning = copy.deepcopy(target.load(directory))

    def restore(self) -> None:
        """Undo a mutation."""
        for path, content in self.contents.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


def run(count: int, seed: int, directory: Path, kinds: tuple[str, ...] | None = None) -> Findings:
    """``count`` mutations, the same for the same seed, kinds by their shares."""
    names = list(kinds or TARGETS)
    shares = [TARGETS[name].share for name in names]
    chosen = random.Random(seed).choices(names, shares, k=count)
    specimens = {name: Specimen(TARGETS[name], directory / str(at)) for at, name in enumerate(names) if name in chosen}
    findings = Findings({name: Counter() for name in names if name in specimens})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case, name in enumerate(chosen):
            outcome, detail = _judge(specimens[name], random.Random(f"{seed}/{case}"))
            findings.counts[name][outcome] += 1
            if outcome in FAULTS:
                findings.faults.append(Fault(name, case, outcome, detail))
    return findings


def _judge(specimen: Specimen, random: random.Random) -> tuple[str, str]:
    target, path = specimen.target, random.choice(specimen.files)
    whole = specimen.contents[path]
    changed = BY_SUFFIX.get(path.suffix, mutate_bytes)(random, whole)
    path.write_bytes(changed)
    if target.mend is not None:
        target.mend(specimen.directory)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _limited():
            meaning = target.load(specimen.directory)
            told = target.says is None or target.says(specimen.directory, meaning)
    except UserError as error:
        outcome, detail = (REFUSED, "") if _is_one_line(str(error)) else (CRASH, f"not one line: {error!r}")
    except _Hang:
        outcome, detail = HANG, f"{path.name}: more than {SECONDS} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, detail = CRASH, f"{path.name}: {''.join(traceback.format_exception(error)[-3:])}"
    else:
        outcome, detail = _meaning(target, specimen.meaning, meaning, told), path.name
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > MOST_GROWTH and outcome not in FAULTS:
        outcome, detail = MEMORY, f"{path.name}: {grown >> 20} MiB"
    if outcome in FAULTS:
        detail += f"\n    {changed[:300]!r}"
    specimen.restore()
    return outcome, detail


def _meaning(target: Target, whole: Any, found: Any, told: bool) -> str:
    if found == whole:
        return SAME if told else SILENT
    return SILENT if target.vouched or not told else OTHER


def _is_one_line(message: str) -> bool:
    """Whether something is said, and in one line as the command line prints it."""
    shown = one_line(message)
    return shown != "" and len(shown.splitlines()) == 1


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Hang

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
