"""``toprl-export doctor``: what is installed, and what each extra, trainer and engine still needs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement

from toprl_export.cli.arguments import Subparsers, add_json

DISTRIBUTION = "toprl-export"
GIB = 2**30
SUBSTITUTES = {"onnxruntime": "onnxruntime-gpu"}
"""Distributions that serve in place of the one an extra asks for."""
PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "tensorrt",
    "NvTensorRTRTXExecutionProvider": "tensorrt-rtx",
}
"""ONNX Runtime's providers that the engine onnx can use, and their names on the command line."""
RTX_PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx"
"""The distribution that brings the last of them as a plugin."""
TENSORRTS = ("tensorrt", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12", "tensorrt_rtx", "cuda-bindings")
"""Distributions of TensorRT, of TensorRT for RTX, and of what plans are run with."""


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


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``doctor`` command."""
    add_json(subparsers.add_parser("doctor"))


def run(args: argparse.Namespace) -> int:
    """Print what was found; 0 whatever it is."""
    found = examine()
    print(json.dumps(found, indent=2) if args.json else describe(found))
    return 0


def examine() -> dict[str, Any]:
    """Everything the command reports, as a JSON object."""
    extras = {"core": _packages(DISTRIBUTION, "")}
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        extras[extra] = _packages(DISTRIBUTION, extra)
    return {
        "format": "toprl-export/doctor",
        "version": 1,
        "toprl_export": metadata.version(DISTRIBUTION),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": _torch(),
        "onnxruntime": _onnxruntime(),
        "tensorrt": {name: version for name in TENSORRTS if (version := _installed(name))},
        "extras": {
            extra: {"ready": all(package.fits for package in packages), "packages": [asdict(p) for p in packages]}
            for extra, packages in extras.items()
        },
        "trainers": [asdict(provided) for provided in _provided("toprl_export.trainers", needs="train")],
        "engines": [asdict(provided) for provided in _provided("toprl_export.engines", needs=None)],
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
    for candidate in (distribution, SUBSTITUTES.get(distribution)):
        with suppress(metadata.PackageNotFoundError):
            if candidate:
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


def _onnxruntime() -> dict[str, Any] | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    names = {PROVIDERS[full] for full in listed if full in PROVIDERS}
    if _installed(RTX_PLUGIN):
        names.add("tensorrt-rtx")
    usable = [name for name in PROVIDERS.values() if name in names]
    return {"version": onnxruntime.__version__, "providers": listed, "provider_names": usable}


def describe(found: dict[str, Any]) -> str:
    """The report of :func:`examine` as text for people."""
    lines = [
        f"toprl-export {found['toprl_export']}, Python {found['python']} ({found['executable']})",
        f"{found['platform']}, {found['cpu_cores']} CPU cores",
        _describe_torch(found["torch"]),
        _describe_onnxruntime(found["onnxruntime"]),
        f"TensorRT: {', '.join(f'{name} {version}' for name, version in found['tensorrt'].items()) or 'not installed'}",
        "",
        "extras (pip install 'toprl-export[EXTRA]'):",
    ]
    for extra, state in found["extras"].items():
        lines.append(f"  {extra:<8}{_ready(state['ready']):<9}{', '.join(map(_describe_package, state['packages']))}")
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
    return f"  {provided['name']:<8}{_ready(provided['ready']):<9}{need}, from {provided['package']}"


def _describe_torch(torch: dict[str, Any] | None) -> str:
    if torch is None:
        return "torch: not installed"
    gpus = [f"{gpu['name']} (sm_{gpu['sm']}, {gpu['memory_bytes'] / GIB:.0f} GiB)" for gpu in torch["gpus"]]
    return f"torch {torch['version']}: {torch['cpu_threads']} CPU threads, GPUs: {', '.join(gpus) or 'none'}"


def _describe_onnxruntime(onnxruntime: dict[str, Any] | None) -> str:
    if onnxruntime is None:
        return "onnxruntime: not installed"
    return f"onnxruntime {onnxruntime['version']}: --provider {', '.join(onnxruntime['provider_names'])}"
