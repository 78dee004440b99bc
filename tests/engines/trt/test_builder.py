"""What the builder does with TensorRT's answers, by a stand-in for TensorRT that builds nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.build.builder import BuilderSettings, PlanBuilder, TimingCache
from toprl_engines.trt.build_report import InputRange
from toprl_export.errors import UserError

PROFILE = (
    InputRange("x", values=False, least=(1, 2), usual=(1, 3), most=(4, 5)),
    InputRange("keep_counts", values=True, least=(2,), usual=(3,), most=(9,)),
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
        UserError, match=r"sizes asked for: Profile 0 .*k exceeds 3840; lower --max-text or --max-batch"
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
