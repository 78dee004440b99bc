"""The tiny world's weights, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from toprl_export.models.llava import LlavaAdapter


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.trainers.tiny_world import fit_head

    path = tmp_path_factory.mktemp("tiny") / "head.safetensors"
    fit_head(path)
    return path


@pytest.fixture(scope="session")
def adapter(weights: Path) -> LlavaAdapter:
    from tests.trainers.tiny_world import load_adapter

    return load_adapter(weights)
