"""The yes/no model, saved once for all tests of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.yes_no_model import save_yes_no_model
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has half of mini-exist right."""
    return save_yes_no_model(tmp_path_factory.mktemp("model") / "yes-no")


@pytest.fixture(scope="session")
def adapter(model_dir: Path) -> LVLMAdapter:
    return load_model(str(model_dir))
