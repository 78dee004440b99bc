"""What `import toprl_export` offers: listed, documented, and imported no earlier than it is used."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from importlib import metadata

import pytest

import toprl_export


def test_every_public_name_is_there_and_listed():
    for name in toprl_export.__all__:
        assert getattr(toprl_export, name) is not None
        assert name in dir(toprl_export)
    assert sorted(toprl_export.__all__) == toprl_export.__all__


def test_the_version_is_the_distributions():
    assert toprl_export.__version__ == metadata.version("toprl-export")


def test_help_shows_what_there_is():
    shown = pydoc.plain(pydoc.render_doc(toprl_export))
    for name in (
        "load(",
        "train(",
        "build(",
        "validate(",
        "compare(",
        "baseline_plan(",
        "class LoadedBundle",
        "class PruningPlan",
    ):
        assert name in shown


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'toprl_export' has no attribute 'lode'"):
        toprl_export.lode  # noqa: B018  # looking it up is the test


def test_importing_the_package_imports_nothing_else():
    code = "import sys, toprl_export; dir(toprl_export); print(sorted({'numpy', 'torch', 'PIL'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
