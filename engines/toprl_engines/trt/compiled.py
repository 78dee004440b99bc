"""What plans were compiled for, and whether they may run here: asked before TensorRT is, whose own answer is a line of its log."""

from __future__ import annotations

import ctypes
from typing import Protocol

from packaging.version import Version

from toprl_engines.trt.binding import Binding
from toprl_export.errors import UserError
from toprl_export.manifest import EngineEntry, GpuEntry

_MAJOR, _MINOR = 75, 76
"""The driver's numbers for the two parts of the compute capability."""


def find_gpu() -> GpuEntry | None:
    """The first GPU that the process may use; None where there is none, or no driver."""
    cuda = _library("libcuda.so.1", "nvcuda.dll")
    device = ctypes.c_int()
    if cuda is None or cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    return None if failed else GpuEntry(name.value.decode(), f"{major.value}.{minor.value}", _driver_version())


def _driver_version() -> str:
    """Such as "580.95.05"; "unknown" where the management library is missing."""
    management = _library("libnvidia-ml.so.1", "nvml.dll")
    if management is None or management.nvmlInit_v2():
        return "unknown"
    version = ctypes.create_string_buffer(96)
    failed = management.nvmlSystemGetDriverVersion(version, len(version))
    management.nvmlShutdown()
    return "unknown" if failed else version.value.decode()


def _library(*names: str) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


PORTABLE_SMS = ("8.0", "8.6", "8.9")
"""Compute capabilities that a plan of TensorRT for RTX runs on unless others were chosen, beside the newer ones."""
PORTABLE_FROM = Version("12.0")
"""And the first of those newer ones; 9.0 and 10.0 are data-centre chips that TensorRT for RTX leaves out."""
AMPERE = Version("8.0")


class Gpu(Protocol):
    """What must be known of a GPU."""

    @property
    def name(self) -> str:
        """What its maker calls it."""
        ...

    @property
    def sm(self) -> str:
        """Its compute capability, like "8.9"."""
        ...


def check_compatible(entry: EngineEntry, binding: Binding, device: Gpu) -> None:
    """Return when plans that ``entry`` describes can be loaded by ``binding`` on ``device``.

    Raises:
        UserError: another TensorRT or another GPU is needed.
    """
    _check_binding(entry, binding)
    if not runs_on(entry, device.sm):
        raise UserError(
            f"the bundle was built for {_targets(entry)}, but {device.name} has compute capability {device.sm}: "
            "build it again on this machine"
        )


def runs_on(entry: EngineEntry, sm: str) -> bool:
    """Whether plans that ``entry`` describes are for GPUs of compute capability ``sm``."""
    if entry.hardware_compatible and Version(sm) >= AMPERE:
        return True
    if entry.target_sms:
        return sm in entry.target_sms
    if entry.gpu is not None and entry.binding != "tensorrt_rtx":
        return sm == entry.gpu.sm
    return sm in PORTABLE_SMS or Version(sm) >= PORTABLE_FROM


def _check_binding(entry: EngineEntry, binding: Binding) -> None:
    built_by = f"{entry.binding} {entry.binding_version}"
    if entry.binding != binding.name:
        raise UserError(
            f"the bundle was built by {built_by}, but this is {binding.name} {binding.version}: "
            f"install {entry.binding}, or build it again"
        )
    if entry.binding_version == binding.version:
        return
    built, here = Version(str(entry.binding_version)), Version(binding.version)
    if not entry.version_compatible:
        raise UserError(
            f"the bundle was built by {built_by}, but {binding.version} is installed: "
            "install that version, build it again, or build it with --version-compatible"
        )
    if built.major != here.major or here < built:
        raise UserError(
            f"the bundle was built by {built_by}, which {binding.version} cannot load: later versions with the same "
            f"first number can; install {built} or build it again"
        )


def _targets(entry: EngineEntry) -> str:
    if entry.hardware_compatible:
        return f"compute capability {AMPERE} and newer"
    if entry.target_sms:
        return f"compute capability {', '.join(entry.target_sms)}"
    if entry.gpu is not None and entry.binding != "tensorrt_rtx":
        return f"{entry.gpu.name} (compute capability {entry.gpu.sm})"
    return f"compute capability {', '.join(PORTABLE_SMS)}, {PORTABLE_FROM} and newer"
