"""What TensorRT cannot do is refused before anything is exported."""

from __future__ import annotations

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.build.builder import target_of
from toprl_engines.trt.compiled import GpuEntry
from toprl_engines.trt.options import TensorRTOptions
from toprl_engines.trt.passes.top_k_limit import TOP_K_LIMIT
from toprl_export.engine import BuildRequest
from toprl_export.errors import UserError
from toprl_export.pruning.plan import PruningPlan
from toprl_flash_attention.tiles import HEAD_DIMS


def check_options(options: TensorRTOptions, binding: Binding, gpu: GpuEntry | None) -> None:
    """Check that ``binding`` can build as ``options`` ask, on this machine or one with a GPU.

    Raises:
        UserError: it cannot.
    """
    for sm in options.target_sms:
        if binding.rtx:
            target_of(binding.module, sm)
        elif gpu is None or sm != gpu.sm:
            raise UserError(
                f"tensorrt builds only for the GPU at hand{f', {gpu.sm}' if gpu else ''}, not for {sm}: leave "
                "--target-sm out, or use --tensorrt-binding tensorrt_rtx"
            )
    if not binding.rtx:
        return
    if options.version_compatible:
        raise UserError(
            "--version-compatible needs TensorRT's lean runtime, which TensorRT for RTX lacks: leave it out, or use "
            "--tensorrt-binding tensorrt"
        )
    if options.hardware_compatible:
        raise UserError(
            "TensorRT for RTX builds for all its GPUs from Ampere on by itself: leave --hardware-compatible out"
        )
    if (options.weight_stripped or options.refittable) and gpu is None:
        raise UserError(
            "--weight-stripped and --refittable make TensorRT for RTX compile on a GPU, and this machine has none: "
            "leave them out, or build on a machine with one"
        )


def check_build(request: BuildRequest, options: TensorRTOptions) -> None:
    """Check that plans can be built from ``request``.

    Raises:
        UserError: they cannot.
    """
    check_plan(request.plan)
    if options.attention != "plugin":
        return
    if options.version_compatible:
        raise UserError(
            "--version-compatible plans run on TensorRT's lean runtime, which does not know the plugin: use "
            "--attention native, or leave --version-compatible out"
        )
    if request.precision == "fp32":
        raise UserError(
            "the FlashAttention plugin computes fp16 and bf16, not fp32: use --attention native, or another --precision"
        )
    width = request.adapter.shape.head_dim
    if width not in HEAD_DIMS:
        raise UserError(
            f"the FlashAttention plugin is for heads of {' or '.join(map(str, HEAD_DIMS))}, and this model's "
            f"have {width}: use --attention native"
        )


def check_plan(plan: PruningPlan) -> None:
    """Check that TensorRT's top-k layer takes the tokens that every budget keeps.

    Raises:
        UserError: some stage of some budget keeps more.
    """
    for schedule in plan.schedules:
        largest = max(schedule.keep_counts)
        if largest > TOP_K_LIMIT:
            raise UserError(
                f"budget {schedule.budget_kept} keeps {largest} tokens at a stage, but TensorRT selects at most "
                f"{TOP_K_LIMIT}: choose a smaller budget or --engine onnx"
            )
