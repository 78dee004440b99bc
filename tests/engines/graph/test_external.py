"""The files that a graph's weights lie in: those that the onnx library finds, and none that the manifest lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from tests.support.onnx_bundle import staged_bundle
from toprl_engines.graph.external import check_external_data, external_files
from toprl_export.bundle import Bundle, file_entries
from toprl_export.errors import UserError


def locations(path: Path) -> set[str]:
    model = onnx.load(str(path), load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if uses_external_data(tensor)]
    return {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}


def test_names_are_those_that_onnx_finds():
    bundle = staged_bundle().bundle
    for role in ("vision", "prefill", "decode"):
        assert external_files(bundle.path(role)) == locations(bundle.path(role)) == {"weights.bin"}
    check_external_data(bundle)


@pytest.mark.parametrize("name", ["other.bin", "../other.bin", "x" * 300])
def test_a_file_that_is_not_listed_is_refused(tmp_path: Path, name: str):
    bundle = staged_bundle().bundle
    model = onnx.load(str(bundle.path("decode")), load_external_data=False)
    tensor = next(one for one in model.graph.initializer if uses_external_data(one))
    next(entry for entry in tensor.external_data if entry.key == "location").value = name
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "decode.onnx").write_bytes(model.SerializeToString())
    files = file_entries(tmp_path, [("weights", "weights.bin"), ("decode", "decode.onnx")])
    changed = Bundle(tmp_path, replace(bundle.manifest, files=files))
    with pytest.raises(UserError, match="which the manifest does not list"):
        check_external_data(changed)


LISTED, OTHER, KEY = b"\x12\x0bweights.bin", b"\x12\x09other.bin", b"\x0a\x08location"


@pytest.mark.parametrize(
    "entry",
    [OTHER + KEY, KEY + LISTED + OTHER, b"\x0a\x88\x00location" + OTHER, b"\x8a\x00\x08location" + OTHER],
    ids=["value first", "second value", "long length", "long tag"],
)
def test_a_file_named_in_unusual_bytes_is_refused(tmp_path: Path, entry: bytes):
    tensor = b"\x08\x01\x10\x01" + b"\x6a" + bytes([len(entry)]) + entry + b"\x70\x01"  # float32 [1], external
    parsed = onnx.TensorProto.FromString(tensor)
    assert [(one.key, one.value) for one in parsed.external_data] == [("location", "other.bin")]  # what runtimes read
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    (tmp_path / "decode.onnx").write_bytes(b"\x08\x08\x3a" + bytes([len(graph)]) + graph)
    with pytest.raises(UserError, match="does not spell out the files of its weights as this release writes them"):
        external_files(tmp_path / "decode.onnx")
