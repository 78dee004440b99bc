"""What the builder is told, and what it makes of a graph."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.build.builder import BuilderSettings, PlanBuilder, TimingCache, target_of
from toprl_engines.trt.build_report import InputRange
from toprl_engines.trt.options import TensorRTOptions
from toprl_export.errors import UserError

FLAGS = ("STRIP_PLAN", "REFIT", "VERSION_COMPATIBLE", "TF32")


class ComputeCapability:
    """As TensorRT for RTX names them."""

    NONE, CURRENT, SM75, SM89, SM120 = range(5)


TRT = SimpleNamespace(
    __name__="tensorrt_rtx",
    BuilderFlag=SimpleNamespace(**{name: name for name in FLAGS}),
    ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
    MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
    HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere+"),
    ComputeCapability=ComputeCapability,
)
FULL, RTX = Binding("tensorrt", TRT, "11.4"), Binding("tensorrt_rtx", TRT, "1.7")


class RecordingConfig(SimpleNamespace):
    """A builder configuration that remembers."""

    def __init__(self) -> None:
        super().__init__(on=set(), off=set(), pools={}, targets={})

    def set_flag(self, flag):
        self.on.add(flag)

    def clear_flag(self, flag):
        self.off.add(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def set_compute_capability(self, target, index):
        assert index < self.num_compute_capabilities
        self.targets[index] = target


def configured(options: TensorRTOptions, binding: Binding) -> tuple[BuilderSettings, RecordingConfig]:
    settings, config = BuilderSettings.of(options, binding), RecordingConfig()
    settings.configure(TRT, config)
    return settings, config


def test_nothing_is_set_unless_it_is_asked_for_and_fp32_is_computed_in_fp32():
    settings, config = configured(TensorRTOptions(), FULL)
    assert (config.on, config.off, config.pools, config.targets) == (set(), {"TF32"}, {}, {})
    assert config.profiling_verbosity == "detailed" and not hasattr(config, "hardware_compatibility_level")
    assert settings.described == ("STRONGLY_TYPED", "no TF32")


def test_every_option_reaches_the_builder():
    options = TensorRTOptions(
        weight_stripped=True,
        refittable=True,
        version_compatible=True,
        hardware_compatible=True,
        workspace_gib=0.5,
    )
    settings, config = configured(options, FULL)
    assert config.on == {"STRIP_PLAN", "REFIT", "VERSION_COMPATIBLE"}
    assert config.pools == {"workspace": 1 << 29} and config.hardware_compatibility_level == "ampere+"
    assert settings.described == (
        "STRONGLY_TYPED",
        "no TF32",
        "STRIP_PLAN",
        "REFIT",
        "VERSION_COMPATIBLE",
        "HARDWARE_COMPATIBLE AMPERE_PLUS",
    )


def test_targets_are_for_rtx_alone():
    options = TensorRTOptions(target_sms=("7.5", "12.0"))
    assert configured(options, RTX)[1].targets == {0: ComputeCapability.SM75, 1: ComputeCapability.SM120}
    assert configured(options, FULL)[1].targets == {}


def test_an_unknown_target_lists_the_known_in_their_order():
    with pytest.raises(UserError, match=r"tensorrt_rtx builds for compute capability 7\.5, 8\.9, 12\.0, not 9\.0"):
        target_of(TRT, "9.0")


PROFILE = (
    InputRange("x", values=False, min=(1, 2), opt=(1, 3), max=(4, 5)),
    InputRange("keep_counts", values=True, min=(2,), opt=(3,), max=(9,)),
)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class TensorRT:
    """As much of TensorRT's module as building takes, and what it was told; tests replace what they need otherwise."""

    ILogger, IProgressMonitor = ILogger, IProgressMonitor
    BuilderFlag = SimpleNamespace(TF32="TF32")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, usable_timings: bytes = b"") -> None:
        self.usable_timings = usable_timings
        self.log: Any = None
        self.ranges: dict[str, tuple[Any, ...]] = {}
        self.plan: Any = memoryview(b"plan")
        self.during: Callable[[], object] = lambda: None
        self.runtimes: list[SimpleNamespace] = []

    def Builder(self, log: Any) -> Any:
        self.log = log

        def tell(name: str, *sizes: Any) -> None:
            self.ranges[name] = sizes

        profile = SimpleNamespace(set_shape=tell, set_shape_input=lambda name, *values: tell(name, "values", *values))
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(num_layers=0, flags=flags),
            create_builder_config=lambda: Config(self.usable_timings),
            create_optimization_profile=lambda: profile,
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True)

    def Runtime(self, log: Any) -> Any:
        inspector = SimpleNamespace(get_engine_information=lambda kind: '{"Layers": [{"Name": "topk"}]}')
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        self.runtimes.append(SimpleNamespace(deserialize_cuda_engine=lambda plan: engine))
        return self.runtimes[-1]

    def _build(self, network: Any, config: Any) -> Any:
        self.during()
        return self.plan if config.progress_monitor.step_complete("timing", 1) else None


class Config(SimpleNamespace):
    """A builder configuration that takes no timings but an empty cache and ``usable``."""

    def __init__(self, usable: bytes) -> None:
        super().__init__(usable=usable, timings=None)

    def clear_flag(self, flag: Any) -> None:
        assert flag == "TF32"

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"damaged" else SimpleNamespace(serialize=lambda: content + b"+", content=content)

    def set_timing_cache(self, timings: Any, ignore_mismatch: bool) -> bool:
        if ignore_mismatch or timings.content not in (b"", self.usable):
            return False
        self.timings = timings
        return True

    def get_timing_cache(self) -> Any:
        return self.timings


def build(trt: TensorRT, folder: Path, cache: TimingCache | None = None) -> Any:
    builder = PlanBuilder(Binding("tensorrt", trt, "11.4"), BuilderSettings(), cache)
    return builder.build(folder / "decode.tensorrt.onnx", PROFILE, folder / "decode.plan")


def test_a_plan_is_written_and_told_of(tmp_path):
    trt = TensorRT()
    found = build(trt, tmp_path)
    assert (tmp_path / "decode.plan").read_bytes() == b"plan" and found.plan_bytes == 4
    assert trt.ranges == {"x": ((1, 2), (1, 3), (4, 5)), "keep_counts": ("values", (2,), (3,), (9,))}
    # Without a listing in the log the built plan is loaded, also one that brings code of TensorRT along.
    assert [layer.kind for layer in found.engine] == ["top-k"]
    assert [runtime.engine_host_code_allowed for runtime in trt.runtimes] == [True]


@pytest.mark.parametrize(
    ("earlier", "kept"), [(b"", b"+"), (b"here", b"here+"), (b"another GPU", b"+"), (b"damaged", b"+")]
)
def test_timings_are_kept_and_those_of_another_gpu_are_replaced(tmp_path, earlier, kept):
    cache = TimingCache(earlier)
    build(TensorRT(usable_timings=b"here"), tmp_path, cache)
    assert cache.content == kept


def test_ctrl_c_stops_the_build_and_writes_nothing(tmp_path):
    trt = TensorRT()
    trt.during = lambda: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(trt, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Requested amount of GPU memory could not be allocated.\nOutOfMemory", "set --workspace-gib, or lower"),
        ("CUDA driver version is insufficient", "update the driver"),
        ("no implementation for node x", "try --attention native"),
    ],
)
def test_a_failure_is_one_line_with_what_helps(tmp_path, said, advice):
    trt = TensorRT()
    trt.plan, trt.during = None, lambda: trt.log.log(ILogger.ERROR, said)
    with pytest.raises(UserError, match=rf"tensorrt 11\.4 cannot build decode\.tensorrt\.onnx: .*{advice}") as caught:
        build(trt, tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_sizes_that_would_fail_when_they_are_run_are_refused(tmp_path):
    trt = TensorRT()
    trt.during = lambda: trt.log.log(ILogger.WARNING, "Profile 0 is not self-consistent:\nk exceeds 3840")
    with pytest.raises(
        UserError, match=r"requested sizes: Profile 0 .*k exceeds 3840; lower --max-text or --max-batch"
    ):
        build(trt, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_full_tensorrt_is_refused_in_one_line(tmp_path):
    trt = TensorRT()

    def fails(log: Any) -> None:
        log.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    trt.Builder = fails
    with pytest.raises(UserError, match=r"cannot start \(CUDA initialization failure .* needs an NVIDIA GPU"):
        build(trt, tmp_path)
