"""Plans are refused before they are loaded where they cannot run, with what would help."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.compiled import Compiled, GpuEntry, check_compatible
from toprl_engines.trt.options import ATTENTIONS
from toprl_export.errors import UserError

FULL = Binding("tensorrt", None, "11.4.0")
RTX = Binding("tensorrt_rtx", None, "1.7.1")


@dataclass(frozen=True)
class Gpu:
    sm: str
    name: str = "Some GPU"


ON_ADA = Compiled(binding="tensorrt", binding_version="11.4.0", gpu=GpuEntry("RTX 4090", "8.9", "580.1"))
PORTABLE = Compiled(binding="tensorrt_rtx", binding_version="1.7.1")


@pytest.mark.parametrize(
    ("compiled", "binding", "sms"),
    [
        (ON_ADA, FULL, ["8.9"]),
        (replace(ON_ADA, hardware_compatible=True), FULL, ["8.0", "8.9", "9.0", "12.0"]),
        (replace(ON_ADA, version_compatible=True), replace(FULL, version="11.6.1"), ["8.9"]),
        (PORTABLE, RTX, ["8.0", "8.6", "8.9", "12.0", "12.1"]),
        (replace(PORTABLE, target_sms=("7.5", "8.9")), RTX, ["7.5", "8.9"]),
        (replace(ON_ADA, binding="tensorrt_rtx", binding_version="1.7.1"), RTX, ["8.0", "8.6", "8.9", "12.0"]),
    ],
)
def test_plans_are_taken_where_they_were_built_for(compiled, binding, sms):
    for sm in sms:
        check_compatible(compiled, binding, Gpu(sm))


@pytest.mark.parametrize(
    ("compiled", "binding", "sm", "message"),
    [
        (ON_ADA, FULL, "9.0", r"for RTX 4090 \(compute capability 8.9\), but Some GPU has compute capability 9.0"),
        (replace(ON_ADA, hardware_compatible=True), FULL, "7.5", "built for compute capability 8.0 and newer"),
        (PORTABLE, RTX, "9.0", "built for compute capability 8.0, 8.6, 8.9, 12.0 and newer, but"),
        (PORTABLE, RTX, "7.5", "compute capability 7.5: build it again"),
        (replace(PORTABLE, target_sms=("8.9",)), RTX, "8.6", "built for compute capability 8.9, but"),
        (ON_ADA, RTX, "8.9", "built by tensorrt 11.4.0, but this is tensorrt_rtx 1.7.1: install tensorrt"),
        (ON_ADA, replace(FULL, version="11.5.0"), "8.9", "11.5.0 is installed: install that version, build it again"),
        (
            replace(ON_ADA, version_compatible=True),
            replace(FULL, version="11.3.0"),
            "8.9",
            "which 11.3.0 cannot load: later releases of the same major version can",
        ),
        (replace(ON_ADA, version_compatible=True), replace(FULL, version="12.0.0"), "8.9", "which 12.0.0 cannot load"),
    ],
)
def test_plans_are_refused_elsewhere(compiled, binding, sm, message):
    with pytest.raises(UserError, match=message):
        check_compatible(compiled, binding, Gpu(sm))


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
compiled_plans = st.builds(
    Compiled,
    binding=names,
    binding_version=names,
    gpu=st.none() | st.builds(GpuEntry, names, names, names),
    target_sms=st.lists(names, max_size=2).map(tuple),
    attention=st.sampled_from(ATTENTIONS),
    version_compatible=st.booleans(),
    hardware_compatible=st.booleans(),
    weight_stripped=st.booleans(),
)


@given(compiled_plans)
def test_what_the_manifest_keeps_is_read_back(compiled: Compiled):
    assert Compiled.from_details(json.loads(json.dumps(compiled.to_details()))) == compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "flash"}, "attention 'flash' is unknown, expected plugin or native"),
        (
            {"weight_stripped": 1},
            "engine.details: weight_stripped is 1, expected true or false: build",
        ),
        ({"gpu": {"name": "L4"}}, "engine.details lacks gpu.(driver|sm): build the bundle again"),
        ({"other": 1}, "engine.details has the unknown field other: build the bundle again"),
    ],
)
def test_details_that_the_engine_did_not_write_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Compiled.from_details(PORTABLE.to_details() | change)
