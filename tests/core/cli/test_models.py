"""models: every named model and family is printed, without loading one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from toprl_export.cli.main import main
from toprl_export.models.registry import FAMILIES, NAMED_MODELS


def test_json_lists_every_model_and_family(capsys: pytest.CaptureFixture[str]):
    assert main(["models", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["models"] == {name: model.description for name, model in NAMED_MODELS.items()}
    assert printed["families"] == FAMILIES.names()


def test_text_names_the_embedded_model_and_imports_no_torch():
    script = (
        "import sys; from toprl_export.cli.main import main; code = main(['models']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mini ") and "llava" in done.stdout
