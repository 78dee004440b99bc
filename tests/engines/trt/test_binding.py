import sys
from types import ModuleType

import pytest

from toprl_engines.trt import binding
from toprl_export.errors import MissingExtraError, UserError


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A function that puts packages with a version, in the place of all real ones, where they can be imported."""
    aliases = []
    monkeypatch.setattr(binding, "load_alias", lambda alias, of: aliases.append((alias, of)))

    def install(**versions):
        for name in binding.BINDINGS:
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(binding.importlib.util, "find_spec", lambda name: name if name in versions else None)
        for name, version in versions.items():
            module = ModuleType(name)
            module.__version__ = version
            monkeypatch.setitem(sys.modules, name, module)
        return aliases

    return install


def test_the_full_tensorrt_is_preferred(installed):
    installed(tensorrt="11.1.0", tensorrt_rtx="1.7.1")
    assert binding.installed_bindings() == ("tensorrt", "tensorrt_rtx")
    found = binding.load_binding()
    assert (found.name, found.version, found.rtx) == ("tensorrt", "11.1.0", False)
    assert found.module is sys.modules["tensorrt"]


def test_rtx_is_taken_where_it_is_alone_and_where_it_is_asked_for(installed):
    aliases = installed(tensorrt="11.1.0", tensorrt_rtx="1.7.1.116")
    assert binding.load_binding("tensorrt_rtx").rtx
    installed(tensorrt_rtx="1.7.1.116")
    assert binding.load_binding().name == "tensorrt_rtx"
    if sys.platform == "linux":
        assert aliases == [("libtensorrt_rtx.so", "libtensorrt_rtx.so.1")] * 2


def test_a_parser_that_would_abort_is_refused_in_one_line(installed, monkeypatch):
    installed(tensorrt_rtx="1.7.1.116")

    def fail(alias, of):
        raise OSError(f"{of}: cannot open shared object file")

    monkeypatch.setattr(binding, "load_alias", fail)
    monkeypatch.setattr(binding.sys, "platform", "linux")
    with pytest.raises(UserError, match=r"looks for libtensorrt_rtx\.so \(.*cannot open.*\): put a link of that name"):
        binding.load_binding("tensorrt_rtx")


def test_a_missing_tensorrt_names_the_extra_that_brings_it(installed):
    installed()
    with pytest.raises(MissingExtraError, match=r"tensorrt, which is not installed: .*toprl-export\[trt\]"):
        binding.load_binding()
    installed(tensorrt="11.1.0")
    with pytest.raises(MissingExtraError, match=r"tensorrt_rtx, .*toprl-export\[trt-rtx\]"):
        binding.load_binding("tensorrt_rtx")


def test_an_old_tensorrt_and_an_unknown_name_are_refused(installed):
    installed(tensorrt="10.13.3")
    with pytest.raises(UserError, match=r"tensorrt 10\.13\.3 is too old, expected 11\.0"):
        binding.load_binding()
    with pytest.raises(UserError, match="unknown TensorRT binding 'tensorrtx'; did you mean"):
        binding.load_binding("tensorrtx")


def test_libraries_that_cannot_be_loaded_are_said_in_one_line(installed, monkeypatch):
    installed(tensorrt="11.1.0")

    def fail(name):
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(binding.importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"installed but cannot be loaded \(libnvinfer\.so\.11"):
        binding.load_binding()
