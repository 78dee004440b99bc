"""What the builder is told besides the graph and its profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toprl_engines.trt.binding import Binding
from toprl_export.errors import UserError
from toprl_export.tensorrt_options import TensorRTOptions

GIB = 1 << 30


@dataclass(frozen=True)
class BuilderSettings:
    """The same for every graph of a bundle.

    Attributes:
        flags: names of TensorRT's builder flags to set.
        workspace_bytes: limit of a layer's intermediate results; None for TensorRT's own.
        hardware_compatible: let all GPUs from Ampere on run the plans.
        target_sms: compute capabilities to build for; empty for what the binding does by itself.
    """

    flags: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    hardware_compatible: bool = False
    target_sms: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: TensorRTOptions, binding: Binding) -> BuilderSettings:
        """What ``options`` come to."""
        wanted = {
            "STRIP_PLAN": options.weight_stripped,
            "REFIT": options.refittable,
            "VERSION_COMPATIBLE": options.version_compatible,
        }
        workspace = options.workspace_gib
        return cls(
            flags=tuple(name for name, on in wanted.items() if on),
            workspace_bytes=None if workspace is None else round(workspace * GIB),
            hardware_compatible=options.hardware_compatible,
            target_sms=options.target_sms if binding.rtx else (),
        )

    @property
    def described(self) -> tuple[str, ...]:
        """For people and the report, by TensorRT's names."""
        level = ("HARDWARE_COMPATIBLE AMPERE_PLUS",) if self.hardware_compatible else ()
        targets = tuple(f"COMPUTE_CAPABILITY {sm}" for sm in self.target_sms)
        return ("STRONGLY_TYPED", "no TF32", *self.flags, *level, *targets)

    def configure(self, trt: Any, config: Any) -> None:
        """Tell them to a builder configuration of the module ``trt``."""
        # Without it neither log nor inspector says what a built layer consists of.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        for name in self.flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
        # With it products of fp32 would have ten bits of mantissa, and what is in fp32 in a plan of half precision (the
        # scorers) is so for its precision.
        config.clear_flag(trt.BuilderFlag.TF32)
        if self.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace_bytes)
        if self.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if self.target_sms:
            config.num_compute_capabilities = len(self.target_sms)
            for index, sm in enumerate(self.target_sms):
                config.set_compute_capability(target_of(trt, sm), index)


def target_of(trt: Any, sm: str) -> Any:
    """TensorRT's name for a compute capability such as "8.9".

    Raises:
        UserError: it builds for no such GPU.
    """
    known = {name: value for name, value in vars(trt.ComputeCapability).items() if name.startswith("SM")}
    wanted = "SM" + sm.replace(".", "")
    if wanted not in known:
        listed = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in sorted(known, key=lambda name: int(name[2:])))
        raise UserError(f"{trt.__name__} builds for compute capability {listed}, not {sm}: choose among them")
    return known[wanted]
