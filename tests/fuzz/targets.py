"""Every kind of file that is read: how a whole one is made, what of it is damaged, and how it is loaded.

A new kind is one line in `TARGETS`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.analyses import cliff
from tests.support.comparison import made_up_comparison
from tests.support.fake_engine import VISUAL_TOKENS, made_up_bundle
from tests.support.yes_no_model import save_yes_no_model
from toprl_export.agent import ACTOR_FILE, AGENT_FILE, Agent, AgentRecord, TrainingRecord, load_agent, save_agent
from toprl_export.analysis.cliff import Cliff
from toprl_export.analysis.variants import load_variants
from toprl_export.bundle import MANIFEST_NAME, load_bundle
from toprl_export.cli.config import read_defaults
from toprl_export.cli.train import command as train_command
from toprl_export.comparison.result import read_comparison, write_comparison
from toprl_export.errors import UserError
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_json_atomic
from toprl_export.manifest import _content_digest
from toprl_export.models.load import load_model
from toprl_export.pruning.actor import Actor, ActorConfig
from toprl_export.pruning.plan import PruningPlan, make_plan
from toprl_export.runtime.frontend import FixedFrontend
from toprl_export.runtime.pictures import open_picture
from toprl_export.runtime.processor import read_processor
from toprl_trainers.recipes import load_recipe
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.learn import TrainingState

SIZES = ActorConfig(8, 4, 2)
PLAN = make_plan(VISUAL_TOKENS, 4, (0, 2), "actor", (8, 4))


@dataclass(frozen=True)
class Target:
    """One kind.

    Attributes:
        make: writes a whole one into an existing, empty directory.
        files: which files of it are damaged, as globs.
        load: reads it as the product does and returns what it means, to be compared by ``==``.
        vouched: a digest stands for the content, so that what loads must mean what it meant before.
        says: whether a file that loaded means what it says; None where nothing independent can tell.
        mend: what is done to the damaged directory before it is loaded, such as sealing it again.
        share: how often it is chosen, relative to the others; the slow ones less.
    """

    make: Callable[[Path], object]
    files: tuple[str, ...]
    load: Callable[[Path], Any]
    vouched: bool = False
    says: Callable[[Path, Any], bool] | None = None
    mend: Callable[[Path], object] | None = None
    share: float = 1.0


def _says_the_same(name: str) -> Callable[[Path, Any], bool]:
    """Compares what was loaded with what a plain parser finds in the file, defaults aside."""

    def says(directory: Path, meaning: Any) -> bool:
        stated = json.loads((directory / name).read_bytes())
        stated.pop("content_sha256", None)  # over the file's own fields; a field left out is its default in the meaning
        return _within(stated, meaning)

    return says


def _within(stated: Any, meaning: Any) -> bool:
    if isinstance(stated, dict):
        return isinstance(meaning, dict) and all(
            key in meaning and _within(value, meaning[key]) for key, value in stated.items()
        )
    if isinstance(stated, list):
        return isinstance(meaning, list) and len(stated) == len(meaning) and all(map(_within, stated, meaning))
    if isinstance(meaning, float) and isinstance(stated, int) and not isinstance(stated, bool):
        return float(stated) == meaning  # a whole number may stand where a fraction is meant
    return bool(stated == meaning) and isinstance(stated, bool) == isinstance(meaning, bool)


def _make_agent(directory: Path) -> None:
    torch.manual_seed(0)
    training = TrainingRecord("toprl", 8, 3, 24, 1.5, "toprl-export train", {"torch": "2"})
    record = AgentRecord("mini-exist", "toprl", "tiny", "f" * 64, PLAN, SIZES, 0, training)
    save_agent(directory, Agent(record, Actor(SIZES)), {"value": torch.zeros(1)})


def _load_agent(directory: Path) -> Any:
    agent = load_agent(directory)
    return {"fingerprint": agent.fingerprint, **to_json(agent.record)}


def _seal(directory: Path) -> None:
    """Give a changed manifest the digest of its content, as somebody who edits it on purpose would."""
    path = directory / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
        content.pop("content_sha256", None)
        content["content_sha256"] = _content_digest(content)
        path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return  # no object any more


def _load_bundle(directory: Path) -> Any:
    bundle = load_bundle(directory)
    bundle.frontend()
    return bundle.manifest.to_json()


def _load_unverified(directory: Path) -> Any:
    bundle = load_bundle(directory, verify=False)
    return bundle.frontend().fingerprint


def _make_plan_file(directory: Path) -> None:
    write_json_atomic(directory / "plan.json", to_json(PLAN))


def _make_recipe(directory: Path) -> None:
    text = "method: toprl\nsettings: {updates: 3, images: 8, learning_rate: 0.001, reward: {cost_weight: 0.9}}\n"
    (directory / "recipe.yaml").write_text(text + "tasks: {mini-exist: {updates: 2}}\n")


def _load_recipe(directory: Path) -> Any:
    recipe = load_recipe(str(directory / "recipe.yaml"), "toprl", "mini-exist")
    config = TOPRLConfig.from_mapping(recipe.settings)
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _make_variants(directory: Path) -> None:
    text = "format: toprl-export/variants\nversion: 1\nvariants:\n"
    (directory / "variants.yaml").write_text(text + "- {name: short, group: g, text: t, settings: {updates: 1}}\n")


def _make_config(directory: Path) -> None:
    (directory / "config.yaml").write_text("seed: 1\nbudget-kept: [192, 64]\noverwrite: true\ntask: mini-exist\n")


def _load_config(directory: Path) -> Any:
    options = {flag: one for one in train_command.params for flag in (*one.opts, *one.secondary_opts)}
    return read_defaults(directory / "config.yaml", options)  # type: ignore[arg-type]


def _fresh_state() -> TrainingState:
    return TrainingState.fresh(SIZES, 0.001, 0, torch.device("cpu"))


def _make_checkpoint(directory: Path) -> None:
    state = _fresh_state()
    total = sum(parameter.sum() for parameter in (*state.actor.parameters(), *state.critic.parameters()))
    total.backward()
    state.optimizer.step()
    state.curves, state.seconds = [[1.0, 2.0, 3.0]], 1.5
    state.save(directory / "run.training.safetensors", "d" * 64)


def _load_checkpoint(directory: Path) -> Any:
    state = _fresh_state()
    state.load(directory / "run.training.safetensors")
    tensors = {name: tensor.tolist() for name, tensor in state._tensors().items()}
    return state.thresholds, state.seconds, tensors


def _make_processor(directory: Path) -> None:
    made_up_bundle(directory / "bundle")
    for file in (directory / "bundle" / "processor").iterdir():
        file.rename(directory / file.name)
    import shutil

    shutil.rmtree(directory / "bundle")


def _load_processor(directory: Path) -> Any:
    frontend = FixedFrontend(read_processor(str(directory)), VISUAL_TOKENS, 8, 8)
    frontend.check("fuzzed")
    frontend.tokens(["is there a star?"])
    frontend.pixels([np.zeros((9, 7, 3), np.uint8)])
    return frontend.fingerprint


def _load_model(directory: Path) -> Any:
    adapter = load_model(str(directory))
    return adapter.answering_fingerprint


def _make_pictures(directory: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **({"exif": exif} if kind in ("png", "jpeg", "webp") else {}))
        (directory / f"picture.{kind}").write_bytes(file.getvalue())


def _load_pictures(directory: Path) -> Any:
    refusals = []
    found = []
    for path in sorted(directory.iterdir()):
        try:
            found.append(hashlib.sha256(open_picture(path).tobytes()).hexdigest())
            open_picture(path.read_bytes())
        except UserError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    return found


def _load_analysis(directory: Path) -> Any:
    return to_json(Cliff.load(directory))


TARGETS: dict[str, Target] = {
    "manifest": Target(lambda at: made_up_bundle(at), (MANIFEST_NAME,), _load_bundle, vouched=True, share=0.5),
    "manifest, sealed again": Target(
        lambda at: made_up_bundle(at), (MANIFEST_NAME,), _load_bundle, says=_says_the_same(MANIFEST_NAME), mend=_seal
    ),
    "bundle's files": Target(
        lambda at: made_up_bundle(at),
        ("*.onnx", "weights.bin", "agents/*/*", "processor/*"),
        _load_bundle,
        vouched=True,
    ),
    "bundle's files, not verified": Target(
        lambda at: made_up_bundle(at), ("processor/*",), _load_unverified, share=0.5
    ),
    "agent": Target(_make_agent, (AGENT_FILE,), _load_agent, says=_says_the_same(AGENT_FILE), share=2),
    "agent's weights": Target(_make_agent, (ACTOR_FILE,), _load_agent, vouched=True),
    "plan": Target(
        _make_plan_file,
        ("plan.json",),
        lambda at: to_json(read_file(PruningPlan, at / "plan.json")),
        says=_says_the_same("plan.json"),
        share=2,
    ),
    "recipe": Target(_make_recipe, ("recipe.yaml",), _load_recipe, share=2),
    "variants": Target(_make_variants, ("variants.yaml",), lambda at: load_variants(at / "variants.yaml")),
    "--config": Target(_make_config, ("config.yaml",), _load_config),
    "training checkpoint": Target(_make_checkpoint, ("*.safetensors",), _load_checkpoint, vouched=True, share=2),
    "comparison": Target(
        lambda at: write_comparison(at / "compare.json", made_up_comparison()),
        ("compare.json",),
        lambda at: to_json(read_comparison(at / "compare.json")),
        says=_says_the_same("compare.json"),
        share=0.5,
    ),
    "analysis": Target(
        lambda at: write_json_atomic(at / "cliff.json", to_json(cliff())),
        ("cliff.json",),
        _load_analysis,
        says=_says_the_same("cliff.json"),
        share=0.5,
    ),
    "processor": Target(_make_processor, ("*",), _load_processor),
    "model": Target(lambda at: save_yes_no_model(at), ("*",), _load_model, share=0.5),
    "pictures": Target(_make_pictures, ("*",), _load_pictures, share=2),
}
"""Kinds by name."""
