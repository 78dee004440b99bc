"""Where ONNX Runtime runs: names that users write, and what is installed."""

from __future__ import annotations

import onnxruntime

from toprl_export.errors import UserError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def choose_provider(name: str | None) -> str:
    """ "cpu" or "cuda" to try; None takes CUDA where this ONNX Runtime was built with it, GPU or not.

    Raises:
        UserError: the name is unknown or the installed ONNX Runtime lacks it.
    """
    installed = onnxruntime.get_available_providers()
    here = [short for short, full in _PROVIDERS.items() if full in installed]
    if name is None:
        return here[-1]
    if name not in here:
        raise UserError(
            f"provider {name!r} is not available; this ONNX Runtime offers: {', '.join(here)} "
            "(CUDA needs the extra toprl-export[gpu] in place of [onnx])"
        )
    return name


def provider_used(session: onnxruntime.InferenceSession) -> str:
    """ "cpu" or "cuda": where ``session`` really runs, which is the CPU when CUDA could not be started."""
    first = session.get_providers()[0]
    return next(short for short, full in _PROVIDERS.items() if full == first)


def provider_chain(name: str) -> list[str]:
    """What to give to an ONNX Runtime session: the provider, and the CPU for what it cannot run."""
    return list(dict.fromkeys([_PROVIDERS[name], _PROVIDERS["cpu"]]))
