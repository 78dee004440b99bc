"""Loading a checkpoint: the packaged one works, a broken copy of it is one clear line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toprl_export.errors import UserError
from toprl_export.models.load import load_model


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    with resources.as_file(resources.files("toprl_export.models.mini").joinpath("checkpoint")) as source:
        return shutil.copytree(source, tmp_path / "model")


def test_a_copy_is_the_same_model(copied: Path):
    mini, copy = load_model("mini"), load_model(str(copied))
    assert copy.fingerprint == mini.fingerprint
    assert copy.frontend.fingerprint == mini.frontend.fingerprint


def _changed(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        content = (directory / name).read_text()
        assert old in content
        (directory / name).write_text(content.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _changed("config.json", '"vision_feature_layer": -1', '"vision_feature_layer": -2'),
        _changed("config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'),
        _changed("chat_template.jinja", "assistant", "answer"),
        _changed("preprocessor_config.json", '"resample": 3', '"resample": 2'),
        _changed("tokenizer.json", '"circles"', '"discs"'),
    ],
    ids=["feature layer", "epsilon", "prompt", "resampling", "a word"],
)
def test_all_that_answers_depend_on_is_in_their_fingerprint(copied: Path, change: Callable[[Path], None]):
    before = load_model(str(copied))
    assert before.answering_fingerprint == load_model("mini").answering_fingerprint
    change(copied)
    after = load_model(str(copied))
    assert after.fingerprint == before.fingerprint
    assert after.answering_fingerprint != before.answering_fingerprint


def _pickled(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"never opened")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "the weights of model"),
        (lambda d: (d / "model.safetensors").write_bytes(b"broken"), "the weights of model"),
        (_pickled, "the weights of model"),
        (lambda d: (d / "preprocessor_config.json").write_text("{"), "the processor of model"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "the processor of model"),
        (lambda d: (d / "chat_template.jinja").unlink(), "has no chat template"),
    ],
)
def test_broken_checkpoints_are_one_line(copied: Path, change: Callable[[Path], None], expected: str):
    change(copied)
    with pytest.raises(UserError) as caught:
        load_model(str(copied))
    assert expected in str(caught.value) and str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_gpu_that_is_not_there(gpus: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=f"cuda:9 was requested, but torch finds {gpus} CUDA GPUs"):
        load_model("mini", device="cuda:9")
    with pytest.raises(UserError, match="'gpu' is unknown to torch"):
        load_model("mini", device="gpu")
    if not gpus:
        with pytest.raises(UserError, match="device cuda was requested"):
            load_model("mini", device="cuda")


def _with_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_weights_that_the_configuration_has_no_place_for_are_refused(copied: Path):
    """Both sides of every comparison would leave them out alike."""

    def biases(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith("language_model.model.layers.0.self_attn.q_proj.weight"))
        tensors[name.replace("weight", "bias")] = torch.full((tensors[name].shape[0],), 5.0)

    _with_weights(copied, biases)
    with pytest.raises(UserError, match=r"holds 1 weights that its config.json has no place for.*q_proj.bias"):
        load_model(str(copied))


def test_fewer_layers_than_the_weights_have_are_refused(copied: Path):
    config = copied / "config.json"
    content = json.loads(config.read_text())
    content["text_config"]["num_hidden_layers"] = 6
    if "layer_types" in content["text_config"]:
        content["text_config"]["layer_types"] = content["text_config"]["layer_types"][:6]
    config.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"weights that its config.json has no place for"):
        load_model(str(copied))


def test_what_older_releases_saved_beside_the_weights_is_harmless(copied: Path):
    def buffers(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.language_model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)

    _with_weights(copied, buffers)
    assert load_model(str(copied)).fingerprint == load_model("mini").fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 0.0),
        ("guidance_scale", 0.0),
        ("forced_eos_token_id", 0),
        ("watermarking_config", {"bias": 9.0}),
    ],
)
def test_requests_that_change_greedy_answers_are_refused_and_zero_is_one(copied: Path, name: str, value: object):
    path = copied / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(UserError, match=name):
        load_model(str(copied))


def test_what_generation_config_asks_for_is_part_of_the_fingerprint(copied: Path):
    path = copied / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_p": 0.5}))
    assert load_model(str(copied)).answering_fingerprint != load_model("mini").answering_fingerprint
