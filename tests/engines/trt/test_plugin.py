"""The plugin's library, and what is told of one that TensorRT does not take."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from toprl_engines.trt.binding import Binding
from toprl_engines.trt.plugin import register_plugin
from toprl_export.errors import UserError


def binding_that_takes_nothing() -> Binding:
    registry = SimpleNamespace(get_creator=lambda *name: None, load_library=lambda path: None)
    return Binding("tensorrt", SimpleNamespace(get_plugin_registry=lambda: registry), "11.2.0.4")


def test_what_is_wrong_with_a_library_is_told(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    another = Path(find_spec("numpy._core._multiarray_umath").origin)
    for library, reason in ((broken, "file too short|invalid ELF"), (another, "no plugin toprl::FlashAttention")):
        with pytest.raises(UserError, match=rf"tensorrt cannot load the plugin .*({reason}).* --attention native"):
            register_plugin(binding_that_takes_nothing(), library)
