"""The machine and a result's provenance: what is recorded of them."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from tests.support.tiny_llava import VISUAL_TOKENS, tiny_adapter
from toprl_export.cores import usable_cores
from toprl_export.evaluation.machine import Provenance, describe_device, installed_versions, torch_device


def test_the_cpu_is_described_with_what_was_used_of_it():
    device = describe_device("cpu", 3)
    assert (device.kind, device.cores, device.threads) == ("cpu", usable_cores(), 3)
    assert device.name and device.platform and (device.memory_bytes is None or device.memory_bytes > 2**20)


def test_versions_are_those_of_installed_packages_only():
    versions = installed_versions()
    assert versions["torch"] == metadata.version("torch")
    assert "python" in versions and "onnxruntime-training" not in versions


def test_auto_is_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert torch_device("auto") == expected
    assert torch_device("cuda:1") == "cuda:1"


def test_provenance_says_what_a_result_was_made_with():
    made = Provenance.today(tiny_adapter(), 7, "toprl-export analyze cliff")
    assert (made.visual_tokens, made.seed, made.versions) == (VISUAL_TOKENS, 7, installed_versions())
    text = made.markdown()
    for part in (made.model, made.model_fingerprint[:12], "seed 7", made.date, "```\ntoprl-export analyze cliff\n```"):
        assert part in text
