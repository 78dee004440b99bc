"""Filling the weights into a plan that was built without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.log import BuildLog, last_error
from toprl_export.errors import UserError


def refit_engine(binding: Binding, engine: Any, graph: Path, log: BuildLog) -> None:
    """Give ``engine`` the weights of the graph that it was built from.

    Args:
        binding: TensorRT.
        engine: a deserialized plan that is stripped or refittable.
        graph: TensorRT's copy of the graph (role ``refit_NAME`` of the bundle), the file of weights beside it.
        log: of the runtime that loaded the engine.

    Raises:
        UserError: the weights do not fit.
    """
    trt = binding.module
    refitter = trt.Refitter(engine, log)
    if trt.OnnxParserRefitter(refitter, log).refit_from_file(str(graph)) and refitter.refit_cuda_engine():
        return
    raise UserError(
        f"{binding.name} cannot fill the weights of {graph} into its plan: {last_error(log)}; build the bundle again"
    )
