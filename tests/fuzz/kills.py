"""``python -m tests.fuzz.kills --count 50 --seed 0``: kill real commands at random instants, repeat them, compare.

Each case runs one command on ``mini`` in a folder of its own, ends it by SIGKILL, SIGTERM or SIGINT at a random instant
of its undisturbed time, and repeats the same command. Then the folder must hold what the undisturbed run's holds: the
same files and no other, hidden ones included, and in each the same bits, times and dates aside.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASK = "mini-exist"
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
"""Each with the exit code of a command that it ended."""
STARTING = {signal.SIGTERM: (-signal.SIGTERM,), signal.SIGINT: (-signal.SIGINT, -signal.SIGABRT)}
"""Exit codes where Python had not yet come to the command line's own handling, or was loading PyTorch, which aborts
where an interrupt reaches its C++ code."""
MEASURED = (
    "seconds",
    "date",
    "latency_ms",
    "latency_iqr_ms",
    "speedup",
    "throughput",
    "peak_memory_bytes",
    "gates",
    "verdict",
    "report_sha256",
    "content_sha256",
)
"""Fields that differ from run to run because they are measured, or are digests of what is."""
RENDERED = (".html", ".xml", ".png")
"""Written for people, with times or dates in them: that they are there is checked, not their bits."""
PYTHON = (sys.executable, "-m", "toprl_export.cli.main")


@dataclass(frozen=True)
class Command:
    """A command line and what lies in the folder before it runs."""

    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()


TRAIN = ("train", "--task", TASK, "--updates", "2", "--limit", "16", "--threads", "1")
FEW = ("--limit", "16", "--random-draws", "1", "--iterations", "0")
BUILD = ("build", "--agent", "agent", "--output-dir", "bundle")
COMMANDS = {
    "train": Command((*TRAIN, "--output-dir", "agent")),
    "train over": Command((*TRAIN, "--output-dir", "agent", "--seed", "1", "--overwrite"), ("agent",)),
    "build": Command(BUILD, ("agent",)),
    "build over": Command((*BUILD, "--budget-kept", "100", "--overwrite"), ("agent", "bundle")),
    "validate": Command(
        ("validate", "bundle", "--limit", "8", "--iterations", "2", "--warmup", "1", "--threads", "1"),
        ("agent", "bundle"),
    ),
    "compare": Command(
        ("compare", "--agents", "agent", "--baselines", "fastv", "--tasks", TASK, "--output-dir", "comparison", *FEW),
        ("agent",),
    ),
}


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command as a process, whose signals have their defaults even where this one ignores some."""

    def defaults() -> None:
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_DFL)

    log = open(folder.parent / f"{folder.name}.log", "ab")  # noqa: SIM115 (the process writes to it)
    with log:
        return subprocess.Popen(
            [*PYTHON, *arguments], cwd=folder, stdout=log, stderr=log, preexec_fn=defaults, env=dict(os.environ)
        )


def content(folder: Path) -> dict[str, Any]:
    """What every file below ``folder`` says, by its path, hidden ones included; figures of time left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): _said(path) for path in files}


def _said(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix in RENDERED:
        return len(data) > 0
    if path.suffix == ".json":
        return _without_measured(json.loads(data))
    if path.suffix == ".md":
        return re.sub(r"\d{4}-\d\d-\d\d|\d+(\.\d+)? (s|rollouts per second)\b", "…", data.decode())
    if path.name == "curves.csv":
        return [re.sub(r",?[^,]*$", "", line) if "seconds" in data.decode() else line for line in data.decode().split()]
    return data


def _without_measured(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in MEASURED}
        if "path" in kept and str(kept["path"]).endswith(
            ".json"
        ):  # a manifest's entry for a file that has seconds in it
            kept.pop("sha256", None)
            kept.pop("size", None)
        return {key: _without_measured(inner) for key, inner in kept.items()}
    return [_without_measured(inner) for inner in value] if isinstance(value, list) else value


class Kills:
    """Undisturbed runs, made when first needed, and cases held against them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._undisturbed: dict[str, tuple[Path, float]] = {}

    def prepared(self, name: str, label: str) -> Path:
        """A folder with what the command needs."""
        folder = self.folder / label
        folder.mkdir()
        for need in COMMANDS[name].needs:
            source, _ = self.undisturbed({"agent": "train", "bundle": "build"}[need])
            shutil.copytree(source / need, folder / need)
        return folder

    def undisturbed(self, name: str) -> tuple[Path, float]:
        """The folder of a run that nothing disturbed, and its seconds."""
        if name not in self._undisturbed:
            folder = self.prepared(name, f"undisturbed {name}")
            began = time.monotonic()
            code = start(COMMANDS[name].arguments, folder).wait()
            if code not in (0, 1):
                log = (self.folder / f"{folder.name}.log").read_text()
                raise SystemExit(f"{name} ended with {code} although nothing disturbed it:\n{log}")
            self._undisturbed[name] = folder, time.monotonic() - began
        return self._undisturbed[name]

    def case(self, number: int, name: str, random: random.Random) -> str | None:
        """One kill and its repetition; what was wrong, or None."""
        whole, seconds = self.undisturbed(name)
        folder = self.prepared(name, f"{number} {name}")
        sent, wait = random.choice(list(SIGNALS)), random.uniform(0, seconds)
        process = start(COMMANDS[name].arguments, folder)
        time.sleep(wait)
        process.send_signal(sent)
        code = process.wait()
        print(f"{number}: {name}, {sent.name} after {wait:.1f} of {seconds:.1f} s, exit code {code}", flush=True)
        if code not in (0, 1, SIGNALS[sent], *STARTING.get(sent, ())):
            return f"exit code {code} after {sent.name}, expected {SIGNALS[sent]}"
        if sent != signal.SIGKILL:
            hidden = [path for path in content(folder) if re.search(r"\.(partial|previous|lock)", path)]
            if hidden:
                return f"{sent.name} left {hidden}"
        again = start(COMMANDS[name].arguments, folder).wait()
        if again not in (0, 1):
            return f"repeated, it ended with {again}: {(self.folder / f'{folder.name}.log').read_text()[-500:]}"
        return _difference(content(whole), content(folder))


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    left = sorted(found.keys() - expected.keys())
    lacking = sorted(expected.keys() - found.keys())
    others = sorted(path for path in expected.keys() & found.keys() if expected[path] != found[path])
    if left or lacking or others:
        return f"left over {left}, lacking {lacking}, different {others}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", choices=list(COMMANDS), help="only this one; may be repeated")
    arguments = parser.parse_args()
    names = arguments.command or list(COMMANDS)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(Path(folder))
        for number in range(arguments.count):
            wrong = kills.case(number, names[number % len(names)], random.Random(f"{arguments.seed}/{number}"))
            if wrong:
                failures += 1
                print(f"   WRONG: {wrong}", flush=True)
    print(f"{arguments.count} kills, {failures} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
