"""What plans were compiled for, and whether they may run here.

`Compiled` is the engine's part of a bundle's manifest. The question is settled before TensorRT sees the plans, for its
own answer would be a line of its log.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Protocol

from packaging.version import Version

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.options import ATTENTIONS
from toprl_export.errors import UserError
from toprl_export.fields import read_fields, to_json

PORTABLE_SMS = ("8.0", "8.6", "8.9")
"""Compute capabilities that a plan of TensorRT for RTX runs on unless others were chosen, beside the newer ones."""
PORTABLE_FROM = Version("12.0")
"""And the first of those newer ones; 9.0 and 10.0 are data-centre chips that TensorRT for RTX leaves out."""
AMPERE = Version("8.0")


def graph_role(name: str) -> str:
    """The role in a bundle of a canonical graph that is kept beside the plans."""
    return f"graph_{name}"


def copy_role(name: str) -> str:
    """The role in a bundle of TensorRT's copy of a graph, from which a plan's weights are filled in."""
    return f"refit_{name}"


@dataclass(frozen=True)
class GpuEntry:
    """A GPU: its name, its compute capability ("8.9") and the version of its driver."""

    name: str
    sm: str
    driver: str


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the plans of a bundle depend on; they were compiled for certain GPUs.

    Attributes:
        binding: the Python package that compiled them, "tensorrt" or "tensorrt_rtx".
        binding_version: its version.
        gpu: where they were compiled; None where that took no GPU.
        target_sms: compute capabilities that they were compiled for; empty for what the binding does by itself: those
            of ``gpu``, or all that TensorRT for RTX calls portable.
        attention: "plugin" where attention layers call `toprl::FlashAttention`, "native" where they are TensorRT's own.
        version_compatible: later versions of the binding can load them too.
        hardware_compatible: other GPUs from Ampere on can run them too.
        weight_stripped: they lack their weights, which are filled in from the bundle's graphs when they are loaded.

    Raises:
        UserError: the attention is unknown.
    """

    binding: str
    binding_version: str
    gpu: GpuEntry | None = None
    target_sms: tuple[str, ...] = ()
    attention: str = "native"
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_stripped: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise UserError(f"attention {self.attention!r} is unknown, expected {' or '.join(ATTENTIONS)}")

    def to_details(self) -> dict[str, Any]:
        """The JSON object that the manifest keeps as ``engine.details``."""
        details: dict[str, Any] = to_json(self)
        return details

    @classmethod
    def from_details(cls, details: object) -> Compiled:
        """The inverse of :meth:`to_details`.

        Raises:
            UserError: a field is missing, unknown or of another type.
        """
        return read_fields(cls, details, "manifest.json: engine.details", "build the bundle again")


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


def check_compatible(compiled: Compiled, binding: Binding, device: Gpu) -> None:
    """Check that plans so compiled can be loaded by ``binding`` on ``device``.

    Raises:
        UserError: another TensorRT or another GPU is needed.
    """
    _check_binding(compiled, binding)
    if not runs_on(compiled, device.sm):
        raise UserError(
            f"the bundle was built for {_targets(compiled)}, but {device.name} has compute capability {device.sm}: "
            "build it again on this machine"
        )


def runs_on(compiled: Compiled, sm: str) -> bool:
    """Whether plans so compiled are for GPUs of compute capability ``sm``."""
    if compiled.hardware_compatible and Version(sm) >= AMPERE:
        return True
    if compiled.target_sms:
        return sm in compiled.target_sms
    if compiled.gpu is not None and compiled.binding != "tensorrt_rtx":
        return sm == compiled.gpu.sm
    return sm in PORTABLE_SMS or Version(sm) >= PORTABLE_FROM


def _check_binding(compiled: Compiled, binding: Binding) -> None:
    built_by = f"{compiled.binding} {compiled.binding_version}"
    if compiled.binding != binding.name:
        raise UserError(
            f"the bundle was built by {built_by}, but this is {binding.name} {binding.version}: "
            f"install {compiled.binding}, or build it again"
        )
    if compiled.binding_version == binding.version:
        return
    built, here = Version(compiled.binding_version), Version(binding.version)
    if not compiled.version_compatible:
        raise UserError(
            f"the bundle was built by {built_by}, but {binding.version} is installed: "
            "install that version, build it again, or build it with --version-compatible"
        )
    if built.major != here.major or here < built:
        raise UserError(
            f"the bundle was built by {built_by}, which {binding.version} cannot load: later releases of the same "
            f"major version can; install {built} or build it again"
        )


def _targets(compiled: Compiled) -> str:
    if compiled.hardware_compatible:
        return f"compute capability {AMPERE} and newer"
    if compiled.target_sms:
        return f"compute capability {', '.join(compiled.target_sms)}"
    if compiled.gpu is not None and compiled.binding != "tensorrt_rtx":
        return f"{compiled.gpu.name} (compute capability {compiled.gpu.sm})"
    return f"compute capability {', '.join(PORTABLE_SMS)}, {PORTABLE_FROM} and newer"
