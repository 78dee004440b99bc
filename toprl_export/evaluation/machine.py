"""Where and with what measurements are made."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("toprl-export", "torch", "transformers", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class Device:
    """Where the measurements were made; ``threads`` were given to reference and engine alike."""

    kind: str
    name: str
    cores: int
    threads: int
    memory_bytes: int | None
    platform: str


def usable_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_device(device: str, threads: int) -> Device:
    """The machine, and the GPU where ``device`` is one."""
    name = _processor()
    if device != "cpu":
        import torch

        name = f"{torch.cuda.get_device_name(device)}, {name}"
    return Device(device, name, usable_cores(), threads, _memory_bytes(), platform.platform())


def installed_versions() -> dict[str, str]:
    """Python's version and those of the packages that do the work."""
    versions = {"python": platform.python_version()}
    installed = {distribution.name for distribution in metadata.distributions()}
    versions.update({name: metadata.version(name) for name in PACKAGES if name in installed})
    return versions


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
