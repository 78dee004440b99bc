"""``toprl-export doctor``: what is installed, and what each extra, trainer and engine still needs."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import click
from packaging.requirements import Requirement

from toprl_export.cli import options
from toprl_export.cli.command import Command
from toprl_export.cli.engine_command_line import load_command_lines
from toprl_export.cli.output import print_json, say

DISTRIBUTION = "toprl-export"
GIB = 2**30


@dataclass(frozen=True)
class Package:
    """One package that an extra asks for."""

    name: str
    wanted: str
    installed: str | None

    @property
    def fits(self) -> bool:
        """Whether a version is installed that the extra accepts."""
        return self.installed is not None and Requirement(f"x{self.wanted}").specifier.contains(
            self.installed, prereleases=True
        )


@dataclass(frozen=True)
class Provided:
    """A trainer or an engine that an installed package registered."""

    name: str
    target: str
    package: str
    extra: str | None
    ready: bool


@click.command(
    "doctor",
    cls=Command,
    help="Report what is installed, and what each extra, trainer and engine still needs.",
    examples=["doctor", "doctor --json"],
)
@options.as_json
def command(as_json: bool) -> None:
    """Print what was found."""
    found = examine()
    print_json(found) if as_json else say(describe(found))


def examine() -> dict[str, Any]:
    """Everything the command reports, as a JSON object."""
    command_lines = load_command_lines()
    extras = {"core": _packages(DISTRIBUTION, "")}
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        extras[extra] = _packages(DISTRIBUTION, extra)
    return {
        "format": "toprl-export/doctor",
        "version": 2,
        "toprl_export": metadata.version(DISTRIBUTION),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": _torch(),
        "extras": {
            extra: {"ready": all(package.fits for package in packages), "packages": [asdict(p) for p in packages]}
            for extra, packages in extras.items()
        },
        "trainers": [asdict(provided) for provided in _provided("toprl_export.trainers", needs="train")],
        "engines": [asdict(provided) for provided in _provided("toprl_export.engines", needs=None)],
        "diagnoses": {name: engine.diagnose() for name, engine in command_lines.loaded.items()},
        "problems": command_lines.broken,
    }


def _packages(distribution: str, extra: str) -> list[Package]:
    """The packages that ``distribution[extra]`` asks for beyond its core, or its core for the empty extra."""
    packages = []
    for line in metadata.requires(distribution) or []:
        requirement = Requirement(line)
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if wanted and not (extra and always):
            packages.append(Package(requirement.name, str(requirement.specifier), _installed(requirement.name)))
    return packages


def _installed(distribution: str) -> str | None:
    # A build for GPUs, which has a name of its own, serves in place of the one that an extra asks for.
    for candidate in (distribution, f"{distribution}-gpu"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(candidate)
    return None


def _provided(group: str, needs: str | None) -> list[Provided]:
    """What is registered in ``group``; each needs the extra ``needs`` or, by convention, the one of its own name."""
    found = []
    for point in metadata.entry_points(group=group):
        package = point.dist.name if point.dist else DISTRIBUTION
        extra: str | None = needs or point.name
        if extra not in (metadata.metadata(package).get_all("Provides-Extra") or []):
            extra = None
        ready = extra is None or all(wanted.fits for wanted in _packages(package, extra))
        found.append(Provided(point.name, f"{point.module}:{point.attr}", package, extra, ready))
    return found


def _torch() -> dict[str, Any] | None:
    if find_spec("torch") is None:
        return None
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "sm": f"{properties.major}{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return {
        "version": torch.__version__,
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }


def describe(found: dict[str, Any]) -> str:
    """The report of :func:`examine` as text for people."""
    lines = [
        f"toprl-export {found['toprl_export']}, Python {found['python']} ({found['executable']})",
        f"{found['platform']}, {found['cpu_cores']} CPU cores",
        _describe_torch(found["torch"]),
        *_describe_engines(found["diagnoses"]),
        *(f"{name}: {problem}" for name, problem in found["problems"].items()),
        "",
        "extras (pip install 'toprl-export[EXTRA]'):",
    ]
    for extra, state in found["extras"].items():
        lines.append(f"  {extra:<11}{_ready(state['ready']):<9}{', '.join(map(_describe_package, state['packages']))}")
    for kind in ("trainers", "engines"):
        lines += ["", f"{kind}:"]
        lines += [_describe_provided(provided) for provided in found[kind]] or ["  none is registered"]
    return "\n".join(lines)


def _ready(ready: bool) -> str:
    return "ready" if ready else "missing"


def _describe_package(package: dict[str, Any]) -> str:
    if package["installed"] is None:
        return f"{package['name']}{package['wanted']} is missing"
    if not Package(**package).fits:
        return f"{package['name']} {package['installed']} is not {package['wanted']}"
    return f"{package['name']} {package['installed']}"


def _describe_provided(provided: dict[str, Any]) -> str:
    need = f"needs {provided['package']}[{provided['extra']}]" if provided["extra"] else "needs nothing more"
    return f"  {provided['name']:<11}{_ready(provided['ready']):<9}{need}, from {provided['package']}"


def _describe_torch(torch: dict[str, Any] | None) -> str:
    if torch is None:
        return "torch: not installed"
    gpus = [f"{gpu['name']} (sm_{gpu['sm']}, {gpu['memory_bytes'] / GIB:.0f} GiB)" for gpu in torch["gpus"]]
    return f"torch {torch['version']}: {torch['cpu_threads']} CPU threads, GPUs: {', '.join(gpus) or 'none'}"


def _describe_engines(diagnoses: dict[str, dict[str, Any]]) -> list[str]:
    """What the engines found, in their own words."""
    engines = load_command_lines().loaded
    return [line for name, found in diagnoses.items() for line in engines[name].describe_diagnosis(found)]
