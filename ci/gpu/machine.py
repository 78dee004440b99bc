"""What machine this is; run as a process of its own, because importing torch can fail in every way."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from importlib import metadata

PACKAGES = (
    "torch", "transformers", "triton", "numpy", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tensorrt_rtx", "flash-attn", "tokenizers", "safetensors", "pytest",
)  # fmt: skip


def describe() -> dict[str, str]:
    """Names and values of what is known; the key "gpu" is there where torch finds one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(cores),
        "nvcc": shutil.which("nvcc") or "none",
    }
    installed = {distribution.name for distribution in metadata.distributions()}
    found |= {name: metadata.version(name) for name in PACKAGES if name in installed}
    return found | _gpu()


def _gpu() -> dict[str, str]:
    try:
        import torch
    except ImportError as error:
        return {"why no gpu": f"torch cannot be imported ({error})"}
    if not torch.cuda.is_available():
        return {"why no gpu": f"torch {torch.__version__} finds no CUDA GPU"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "sm": f"{properties.major}.{properties.minor}",
        "gpu memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "multiprocessors": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
    }


if __name__ == "__main__":
    json.dump(describe(), sys.stdout)
