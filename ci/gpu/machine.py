"""The machine that checks run on, and the project's entry points where it is not installed.

``python -m ci.gpu.machine`` describes the machine in a process of its own: importing torch can fail in any way.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch", "transformers", "triton", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tensorrt_rtx_cu13", "flash-attn", "tokenizers", "safetensors", "pytest",
)  # fmt: skip


def describe() -> dict[str, str]:
    """Names and values of what is known; the key "gpu" is there where torch finds one."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(len(os.sched_getaffinity(0))),
        "nvcc": shutil.which("nvcc") or "none",
    }
    return found | dict(_versions()) | _gpu()


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def _gpu() -> dict[str, str]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"why no gpu": f"torch cannot be imported ({error})"}
    if not torch.cuda.is_available():
        return {"why no gpu": f"torch {torch.__version__} finds no CUDA GPU"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "sm": f"{properties.major}.{properties.minor}",
        "gpu memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def write_distribution(pyproject: Path, directory: Path) -> Path:
    """Write ``NAME-VERSION.dist-info`` with metadata and entry points, so that trainers and engines are found by name.

    It stands in for installing the project where pip has nothing to install from.

    Args:
        pyproject: the project's own file.
        directory: to be put on ``PYTHONPATH``; it exists.

    Returns:
        the ``dist-info`` directory.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    folder = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    sections = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = []
    for section, points in sections.items():
        lines += [f"[{section}]", *(f"{point} = {target}" for point, target in points.items()), ""]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


if __name__ == "__main__":
    json.dump(describe(), sys.stdout)
