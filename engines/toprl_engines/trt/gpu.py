"""The GPU that plans are built on, asked of the driver itself: no package is needed."""

from __future__ import annotations

import ctypes

from toprl_export.manifest import GpuEntry

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
