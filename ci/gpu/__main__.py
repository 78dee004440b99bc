"""All checks, one process each: ``python -m ci.gpu OUTPUT [--device cpu] [--quick] [--only NAME[,NAME]]``.

Leaves ``OUTPUT/report.json``, ``OUTPUT/report.md`` and ``OUTPUT/log.txt``; the first two are written anew after every
check. Exit code 0: nothing that ran failed or missed its goal (what could not run does not count); 1: something did;
2: there is no GPU, or the flags make no sense.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ci.gpu.machine import write_distribution
from ci.gpu.plan import CHECKS, Check, judge_all
from ci.gpu.process import run_supervised
from ci.gpu.report import CheckResult, GpuReport, check_table, render, verdict_table, write_text
from toprl_export.fields import to_json

ROOT = Path(__file__).parents[2]
TOTAL_SECONDS = 460.0
GRACE = 1.25
"""A check that has not ended by this multiple of its time is stopped."""
PROBE_SECONDS = 150
"""Importing torch for the first time can take a minute; nothing is run where the probe finds no GPU."""
CPU_FACTOR = 3
"""How many times the seconds planned for a GPU a check may take on a CPU."""


@dataclass(frozen=True)
class CommandLine:
    """The command line."""

    output: Path
    device: str
    quick: bool
    only: tuple[str, ...]
    seconds: float
    command: str


@dataclass
class GpuRun:
    """One run: what its processes are given, and their results so far."""

    settings: CommandLine
    checks: Mapping[str, Check]
    environment: Mapping[str, str]
    started: float = field(default_factory=time.monotonic)
    machine: Mapping[str, str] = field(default_factory=dict)
    results: list[CheckResult] = field(default_factory=list)

    @property
    def why_not(self) -> str:
        """Why nothing can run; empty where it can."""
        missing = self.settings.device == "cuda" and "gpu" not in self.machine
        return self.machine.get("why no gpu", "there is no GPU") if missing else ""

    def check(self, name: str) -> None:
        """Run one check, or record why not, and write the report anew."""
        settings = self.settings
        left = (settings.seconds - (time.monotonic() - self.started)) / GRACE
        planned = self.checks[name].seconds * (CPU_FACTOR if settings.device == "cpu" else 1)
        seconds = min(planned, left)
        if self.why_not or seconds < 1:
            self.results.append(CheckResult(name, "not run", self.why_not or "no time was left for it"))
        else:
            print(f"== {name}, at most {seconds:.0f} s", flush=True)
            result = self._supervised(name, seconds)
            with (settings.output / "log.txt").open("a", encoding="utf-8") as stream:
                stream.write(f"== {name}: {result.status} {result.why}\n{result.log}\n")
            self.results.append(result)
        self.report()

    def report(self) -> GpuReport:
        """Write what was found so far."""
        settings = self.settings
        report = GpuReport(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=settings.command,
            device=settings.device,
            quick=settings.quick,
            seconds=round(time.monotonic() - self.started, 1),
            machine=self.machine,
            checks=tuple(self.results),
            verdicts=judge_all(self.results, settings.device, settings.quick),
        )
        text = json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(settings.output / "report.json", text + "\n")
        write_text(settings.output / "report.md", render(report))
        return report

    def _supervised(self, name: str, seconds: float) -> CheckResult:
        with tempfile.TemporaryDirectory(prefix="toprl-gpu-", ignore_cleanup_errors=True) as folder:
            command = [sys.executable, "-m", "ci.gpu.process", self.checks[name].target]
            command += ["--cases", str(Path(folder, "cases.jsonl")), "--scratch", folder]
            command += ["--device", self.settings.device, "--seconds", f"{seconds:.1f}"]
            command += ["--quick"] if self.settings.quick else []
            return run_supervised(name, command, ROOT, self.environment, seconds * GRACE, Path(folder))


def main(arguments: Sequence[str] | None = None, checks: Mapping[str, Check] = CHECKS) -> int:
    """Run the checks; see the module's text for what it leaves and returns."""
    settings = _parse(sys.argv[1:] if arguments is None else arguments, checks)
    settings.output.mkdir(parents=True, exist_ok=True)
    write_text(settings.output / "log.txt", "")
    with tempfile.TemporaryDirectory(prefix="toprl-gpu-") as site:
        run = GpuRun(settings, checks, _environment(Path(site), settings.device))
        run.machine = probe(run.environment)
        for name in settings.only:
            run.check(name)
        report = run.report()
    print(check_table(report), verdict_table(report), f"report: {settings.output / 'report.md'}", sep="\n\n")
    if run.why_not:
        print(f"error: {run.why_not}: use a CUDA machine, or --device cpu --quick", file=sys.stderr)
        return 2
    return int(report.broken)


def _parse(arguments: Sequence[str], checks: Mapping[str, Check]) -> CommandLine:
    parser = argparse.ArgumentParser(
        prog="ci/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="directory of the report")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run at all?")
    parser.add_argument("--only", metavar="NAME[,NAME]", default=",".join(checks), help=", ".join(checks))
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for everything (default: %(default)g)")
    found = parser.parse_args(arguments)
    only = tuple(dict.fromkeys(found.only.split(",")))
    unknown = [name for name in only if name not in checks]
    if unknown:
        parser.error(f"unknown check {unknown[0]!r}; known: {', '.join(checks)}")
    if found.device == "cpu" and not found.quick:
        parser.error("full shapes are far too large for a CPU: add --quick")
    command = shlex.join(["ci/gpu.sh", *arguments])
    return CommandLine(found.output, found.device, found.quick, only, found.seconds, command)


def _environment(site: Path, device: str) -> dict[str, str]:
    """The rooms on ``PYTHONPATH``, entry points where the project is not installed, no TF32, whose error is a thousand
    times that of fp32, and Triton's interpreter on a CPU."""
    try:
        metadata.version("toprl-export")
    except metadata.PackageNotFoundError:
        write_distribution(ROOT / "pyproject.toml", site)
    rooms = [ROOT, ROOT / "trainers", ROOT / "engines", ROOT / "engines" / "flash_attention", site]
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*map(str, rooms), *([inherited] if inherited else [])])
    interpreted = {"TRITON_INTERPRET": "1"} if device == "cpu" else {}
    fixed = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    return {**os.environ, "PYTHONPATH": path, **fixed, **interpreted}


def probe(environment: Mapping[str, str]) -> dict[str, str]:
    """`ci.gpu.machine` in a process of its own."""
    command = [sys.executable, "-m", "ci.gpu.machine"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"why no gpu": f"the machine could not be probed ({type(error).__name__})"}
    return found


if __name__ == "__main__":
    sys.exit(main())
