"""From one graph's copy to one plan, and the builder's settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.build_report import (
    GraphBuild,
    InputRange,
    LayerEntry,
    inspected_layers,
    listed_layers,
    network_layers,
)
from toprl_engines.trt.native_calls import BuildLog, deferred_interrupt, last_error, make_log, out_of_device_memory
from toprl_engines.trt.options import TensorRTOptions
from toprl_export.errors import UserError

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
        """The settings that ``options`` ask for."""
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
        """Set them on a builder configuration of the module ``trt``."""
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


class TimingCache:
    """How fast which kernel was for what, so that the builder does not measure it again. Grows with every build."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content


@dataclass(frozen=True)
class PlanBuilder:
    """Builds plans that share their settings and timing cache.

    Attributes:
        binding: TensorRT.
        settings: see `BuilderSettings`.
        cache: of timings; None where nothing is timed, as by TensorRT for RTX.
    """

    binding: Binding
    settings: BuilderSettings
    cache: TimingCache | None

    def build(self, graph: Path, profile: tuple[InputRange, ...], plan: Path) -> GraphBuild:
        """Parse ``graph``, build it for ``profile`` and write ``plan``.

        Raises:
            UserError: TensorRT cannot; the message holds the last error of its log.
            KeyboardInterrupt: Ctrl-C was pressed; the builder stops between two steps.
        """
        trt, log = self.binding.module, make_log(self.binding.module)
        start = time.perf_counter()
        with deferred_interrupt() as interrupted:
            builder = self._builder(log)
            network = self._network(builder, graph, log)
            config = builder.create_builder_config()
            self.settings.configure(trt, config)
            config.add_optimization_profile(self._profile(builder, profile))
            config.progress_monitor = _monitor(trt, interrupted)
            self._load_cache(config)
            serialized = builder.build_serialized_network(network, config)
            layers = () if serialized is None else listed_layers(log.listing) or self._inspected(log, serialized)
        if serialized is None:
            raise self._failure(graph, log)
        self._check_profile(graph, log)
        plan.write_bytes(memoryview(serialized))
        self._save_cache(config)
        return GraphBuild(
            profile=profile,
            network=network_layers(network),
            network_layers=network.num_layers,
            engine=layers,
            seconds=time.perf_counter() - start,
            plan_bytes=serialized.nbytes,
            activation_bytes=log.activation_bytes,
            warnings=tuple(dict.fromkeys(log.warnings)),
        )

    def _builder(self, log: BuildLog) -> Any:
        try:
            return self.binding.module.Builder(log)
        except TypeError as error:  # what a C++ factory's null pointer becomes
            raise UserError(
                f"{self.binding.name} {self.binding.version} cannot start ({last_error(log)}): it needs an NVIDIA GPU "
                "and a driver for its CUDA version; TensorRT for RTX (--tensorrt-binding tensorrt_rtx) builds without"
            ) from error

    def _network(self, builder: Any, graph: Path, log: BuildLog) -> Any:
        trt = self.binding.module
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(graph)):
            log.errors += [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise UserError(
                f"{self.binding.name} {self.binding.version} cannot read {graph.name}: {last_error(log)}; "
                "use another version of it, or --engine onnx"
            )
        return network

    def _profile(self, builder: Any, ranges: tuple[InputRange, ...]) -> Any:
        profile = builder.create_optimization_profile()
        for one in ranges:
            set_range = profile.set_shape_input if one.values else profile.set_shape
            set_range(one.name, one.min, one.opt, one.max)
        return profile

    def _load_cache(self, config: Any) -> None:
        if self.cache is not None:
            # One of another GPU or version is not taken.
            for content in (self.cache.content, b""):
                timings = config.create_timing_cache(content)
                if timings is not None and config.set_timing_cache(timings, ignore_mismatch=False):
                    return

    def _save_cache(self, config: Any) -> None:
        timings = None if self.cache is None else config.get_timing_cache()
        if self.cache is not None and timings is not None:
            self.cache.content = bytes(timings.serialize())

    def _inspected(self, log: BuildLog, serialized: Any) -> tuple[LayerEntry, ...]:
        """The built layers by the engine inspector; none where there is no GPU to load the plan on."""
        trt = self.binding.module
        runtime = trt.Runtime(log)
        # A plan for later versions brings code along, and is loaded only where that is allowed; this one is our own.
        runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(serialized)
        if engine is None:
            return ()
        inspector = engine.create_engine_inspector()
        return inspected_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _check_profile(self, graph: Path, log: BuildLog) -> None:
        """Such a plan is built with no more than a warning, and fails when it is run."""
        found = [text for text in log.warnings if text.startswith("Profile ") and "not self-consistent" in text]
        if found:
            reason = " ".join(found[0].split())
            raise UserError(
                f"{self.binding.name} cannot run {graph.name} at the requested sizes: {reason}; lower --max-text or "
                "--max-batch, or use --engine onnx"
            )

    def _failure(self, graph: Path, log: BuildLog) -> UserError:
        reason = last_error(log)
        if out_of_device_memory(reason):
            fix = "stop what else uses the GPU, set --workspace-gib, or lower --max-batch or --max-text"
        elif "no kernel image" in reason or "CUDA driver version" in reason:
            fix = "update the driver, or build for this GPU with another TensorRT"
        else:
            fix = "try --attention native, or another version of TensorRT"
        return UserError(f"{self.binding.name} {self.binding.version} cannot build {graph.name}: {reason}; {fix}")


def _monitor(trt: Any, interrupted: Callable[[], bool]) -> Any:
    """Lets the builder stop soon after Ctrl-C."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del phase_name, parent_phase, num_steps

        def phase_finish(self, phase_name: str) -> None:
            del phase_name

        def step_complete(self, phase_name: str, step: int) -> bool:
            del phase_name, step
            return not interrupted()

    return Monitor()
