"""build_report.json: what is written is read back, and layers are counted by kind."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_export.build_report import (
    KINDS,
    BuildReport,
    GraphBuild,
    InputRange,
    LayerEntry,
    read_build_report,
    write_build_report,
)
from toprl_export.errors import UserError

names = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.lists(st.integers(0, 10**9), max_size=3).map(tuple)
layers = st.lists(
    st.builds(LayerEntry, names, names, st.sampled_from(KINDS), names, st.lists(names, max_size=2).map(tuple)),
    max_size=3,
).map(tuple)
graphs = st.builds(
    GraphBuild,
    profile=st.lists(st.builds(InputRange, names, st.booleans(), numbers, numbers, numbers), max_size=2).map(tuple),
    network=layers,
    network_layers=st.integers(3, 99),
    engine=layers,
    seconds=st.floats(0, 1e6),
    plan_bytes=st.integers(0, 2**40),
    activation_bytes=st.none() | st.integers(0, 2**40),
    warnings=st.lists(names, max_size=2).map(tuple),
)
reports = st.builds(
    BuildReport,
    binding=names,
    precision=names,
    attention=names,
    flags=st.lists(names, max_size=2).map(tuple),
    workspace_bytes=st.none() | st.integers(1, 2**40),
    timing_cache=st.booleans(),
    graphs=st.dictionaries(names, graphs, max_size=2),
)


@given(reports)
def test_round_trip(report: BuildReport):
    with TemporaryDirectory() as directory:
        write_build_report(Path(directory), report)
        assert read_build_report(Path(directory, "build_report.json")) == report


SOME = GraphBuild(
    profile=(InputRange("x", False, (1, 3), (1, 3), (4, 3)),),
    network=(
        LayerEntry("a", "PLUGIN_V3", "attention plugin"),
        LayerEntry("b", "PLUGIN_V3", "attention plugin"),
        LayerEntry("t", "TOPK", "top-k"),
    ),
    network_layers=10,
    engine=(LayerEntry("k", "kgen", "other", "kernel", ("n", "m")), LayerEntry("g", "kgen", "gather")),
    seconds=1.5,
    plan_bytes=7,
    activation_bytes=None,
    warnings=(),
)
REPORT = BuildReport("tensorrt_rtx 1.7.1", "fp16", "plugin", ("STRONGLY_TYPED",), None, False, {"prefill": SOME})


def test_layers_are_counted_by_kind():
    assert SOME.kinds == {
        "attention native": 0,
        "attention plugin": 2,
        "top-k": 1,
        "gather": 0,
        "other": 7,
    }
    assert SOME.engine_kinds["gather"] == SOME.engine_kinds["other"] == 1
    written = REPORT.to_json()["graphs"]["prefill"]
    assert (written["network_kinds"], written["engine_kinds"]) == (SOME.kinds, SOME.engine_kinds)


def test_files_are_read_back_and_others_refused(tmp_path: Path):
    write_build_report(tmp_path, REPORT)
    path = tmp_path / "build_report.json"
    assert read_build_report(path) == REPORT
    content = json.loads(path.read_text())
    for change, message in (
        ({"version": 2}, "has version 2 of toprl-export/trt-build, but this release reads version 1"),
        ({"format": "toprl-export/report"}, "has format 'toprl-export/report'"),
        ({"timing_cache": 1}, "timing_cache is 1, expected true or false"),
        ({"graphs": {"prefill": {}}}, r"lacks graphs\.prefill\.profile"),
        ({"graphs": {"prefill": 3}}, r"graphs\.prefill is 3, expected an object"),
        ({"graphs": []}, r"graphs is \[\], expected an object"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            read_build_report(path)
