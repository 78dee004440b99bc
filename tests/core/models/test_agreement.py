"""Results of the check against Hugging Face's own forward are kept, and made again where they cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_llava import tiny_adapter
from toprl_export.errors import UserError
from toprl_export.models import agreement
from toprl_export.models.agreement import Agreement, known_agreement


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cache is a directory of the test's; every check is noted."""
    made: list[str] = []
    real = agreement.check_agreement

    def counted(adapter: agreement.LVLMAdapter) -> Agreement:
        made.append(adapter.model_id)
        return real(adapter)

    monkeypatch.setattr(agreement, "_cache", lambda: tmp_path)
    monkeypatch.setattr(agreement, "check_agreement", counted)
    return made


def test_a_checkpoint_is_checked_once(checks: list[str], tmp_path: Path):
    first = known_agreement(tiny_adapter())
    assert known_agreement(tiny_adapter()) == first and len(checks) == 1
    known_agreement(tiny_adapter(seed=1))  # other weights
    assert len(checks) == 2 and len(list(tmp_path.iterdir())) == 2


def test_a_damaged_result_is_made_again(checks: list[str], tmp_path: Path):
    first = known_agreement(tiny_adapter())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    assert known_agreement(tiny_adapter()) == first and len(checks) == 2
    assert file.read_bytes() == whole


def test_a_full_disk_does_not_refuse_the_model(checks: list[str], monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise UserError("no space left")

    monkeypatch.setattr(agreement, "write_json_atomic", full)
    assert known_agreement(tiny_adapter()).begins is None
    assert len(checks) == 1
