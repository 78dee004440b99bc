"""models: every named model and family is printed, without loading one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.yes_no_model import save_yes_no_model
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


def test_a_check_says_how_close_the_walk_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = save_yes_no_model(tmp_path / "model")
    capsys.readouterr()
    assert main(["models", "check", str(directory)]) == 0
    printed = capsys.readouterr().out
    assert "llava, 25 visual tokens, 4 layers" in printed and "states entering decoder layer 3" in printed
    assert "computed here as by the model's own forward" in printed
    assert main(["models", "check", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["same_tokens"]) == ("toprl-export/agreement", True)
    assert main(["models", "check"]) == 2
    (directory / "chat_template.jinja").unlink()
    assert main(["models", "check", str(directory)]) == 2
    assert "has no chat template" in capsys.readouterr().err
