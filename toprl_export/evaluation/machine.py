"""Where and with what something was measured: the machine, installed packages, and the provenance of a result."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toprl_export.models.adapter import LVLMAdapter

PACKAGES = ("toprl-export", "torch", "transformers", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class Device:
    """Where measurements were made.

    Attributes:
        kind: the torch device, "cpu", "cuda" or "cuda:N".
        name: of the processor, on a GPU after the GPU's.
        cores: CPU cores that the process may use.
        threads: CPU threads; everything compared has the same number.
        memory_bytes: of the machine; None where it is unknown.
        platform: operating system and architecture.
    """

    kind: str
    name: str
    cores: int
    threads: int
    memory_bytes: int | None
    platform: str


def source_commit() -> str | None:
    """The commit of the working tree that this package runs from, with "-dirty" where it was changed; else None."""
    here = Path(__file__).parent
    tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


@dataclass(frozen=True)
class Provenance:
    """What a result was made with.

    Attributes:
        model: its name or path.
        model_fingerprint: its weights.
        visual_tokens: n.
        decoder_layers: L.
        device: where it ran.
        seed: of questions and bootstrap.
        command: the command line, or "python" when called from code.
        date: when it was made, in UTC, such as 2026-11-20.
        versions: package versions by name.
    """

    model: str
    model_fingerprint: str
    visual_tokens: int
    decoder_layers: int
    device: str
    seed: int
    command: str
    date: str
    versions: dict[str, str]

    @classmethod
    def today(cls, adapter: LVLMAdapter, seed: int, command: str) -> Provenance:
        """That of a result made now, with the packages installed."""
        return cls(
            model=adapter.model_id,
            model_fingerprint=adapter.fingerprint,
            visual_tokens=adapter.visual_tokens,
            decoder_layers=adapter.shape.layers,
            device=str(adapter.device),
            seed=seed,
            command=command,
            date=datetime.now(UTC).date().isoformat(),
            versions=installed_versions(),
        )

    def markdown(self) -> str:
        """What a reader needs to repeat it."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"Model `{self.model}` (weights `{self.model_fingerprint[:12]}…`, {self.visual_tokens} visual tokens, "
            f"{self.decoder_layers} decoder layers) on {self.device}; seed {self.seed}; {self.date}; {versions}.\n\n"
            f"```\n{self.command}\n```\n"
        )


def usable_cores() -> int:
    """CPU cores this process may use, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use ``count`` CPU threads inside the block; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_device(name: str) -> str:
    """The torch device that a user chose; "auto" is a GPU if there is one."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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
