"""Options of the engine trt: impossible ones are refused at once, and a plan is known by what it depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprl_engines.trt.options import TensorRTOptions
from toprl_export.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention": "flash"}, "unknown attention 'flash'; known: plugin, native"),
        ({"binding": "tensorrt-rtx"}, "unknown TensorRT binding 'tensorrt-rtx'; did you mean 'tensorrt_rtx'"),
        ({"attention": "native", "plugin_library": Path("a.so")}, "--plugin-library is for --attention plugin"),
        ({"max_batch": 0}, "--max-batch is 0, expected a whole number of at least 1"),
        ({"max_text": True}, "--max-text is True"),
        ({"max_new_tokens": 2.5}, r"--max-new-tokens is 2\.5"),
        ({"workspace_gib": 0.0}, r"--workspace-gib is 0\.0, expected a number above 0"),
        ({"workspace_gib": float("nan")}, "--workspace-gib is nan"),
        ({"target_sms": ("89",)}, "--target-sm is '89', expected a compute capability such as 8.9"),
        ({"target_sms": ("8.9",), "hardware_compatible": True}, "--hardware-compatible and --target-sm exclude"),
    ],
)
def test_impossible_options_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        TensorRTOptions(**given)


def test_given_flags_are_those_that_differ_from_their_defaults():
    assert TensorRTOptions().given_flags == ()
    given = TensorRTOptions(max_batch=8, refittable=True, target_sms=("8.9",), binding="tensorrt_rtx")
    assert given.given_flags == ("--max-batch", "--refittable", "--tensorrt-binding", "--target-sm")


def test_every_option_changes_the_identity():
    changes = (
        {"attention": "native"},
        {"max_batch": 5},
        {"max_text": 5},
        {"max_new_tokens": 5},
        {"workspace_gib": 1.0},
        {"weight_stripped": True},
        {"refittable": True},
        {"version_compatible": True},
        {"hardware_compatible": True},
        {"binding": "tensorrt"},
        {"target_sms": ("8.9",)},
    )
    found = [TensorRTOptions().identity, *(TensorRTOptions(**change).identity for change in changes)]
    assert all(one not in found[:place] for place, one in enumerate(found))


def test_a_plugin_is_known_by_its_content_wherever_it_lies(tmp_path: Path):
    libraries = [tmp_path / name for name in ("a.so", "b.so", "c.so")]
    for library, content in zip(libraries, (b"same", b"same", b"other"), strict=True):
        library.write_bytes(content)
    first, second, third = (TensorRTOptions(plugin_library=library).identity for library in libraries)
    assert first == second != third


def test_a_plugin_that_is_not_there_names_the_way_to_get_it(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.so does not exist: build it with engines/flash_attention/build\.sh"):
        _ = TensorRTOptions(plugin_library=tmp_path / "nowhere.so").identity
