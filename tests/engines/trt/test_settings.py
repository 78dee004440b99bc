"""What options come to in TensorRT's own terms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.build.builder import BuilderSettings, target_of
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


class Config(SimpleNamespace):
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


def configured(options: TensorRTOptions, binding: Binding) -> tuple[BuilderSettings, Config]:
    settings, config = BuilderSettings.of(options, binding), Config()
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
