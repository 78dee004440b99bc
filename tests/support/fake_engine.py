"""An engine without graphs: a little NumPy language model behind the `EngineSession` protocol, and bundles for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from toprl_export.bundle import (
    PROCESSOR_DIR,
    AgentEntry,
    Bundle,
    EngineEntry,
    Manifest,
    ModelEntry,
    ValidationStamp,
    file_entries,
    load_bundle,
    stamp_validation,
    write_manifest,
)
from toprl_export.engine import BuildRequest, BuildResult, SessionOptions
from toprl_export.models.mini.architecture import END, build_tokenizer
from toprl_export.models.mini.processor import mini_processor
from toprl_export.models.shape import DecoderShape
from toprl_export.pruning.plan import make_plan
from toprl_export.runtime.frontend import FixedFrontend
from toprl_export.runtime.session import EncodedImages, PrefillRequest, PrefillResult

VISUAL_TOKENS, WIDTH, MAX_LENGTH = 16, 8, 64
TOKENIZER = build_tokenizer()
FRONTEND = FixedFrontend(mini_processor(image_pixels=8, patch_size=2), VISUAL_TOKENS, 8, 8)
END_ID: int = TOKENIZER.token_to_id(END)
TOOLCHAIN = {"numpy": np.__version__}


@dataclass
class FakeCache:
    """A row's whole state is the sum of what it has read; ``steps`` counts decoded tokens."""

    state: np.ndarray  # [b, d]
    position: np.ndarray  # [b]
    steps: int = 0


@dataclass
class FakeSession:
    """Reads every token with its position and every kept visual token once; grows keener to stop as it goes."""

    options: SessionOptions = field(default_factory=SessionOptions)
    decode_calls: int = 0
    encoded_images: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        self._embedding = rng.normal(size=(TOKENIZER.get_vocab_size(), WIDTH))
        self._head = rng.normal(size=(WIDTH, TOKENIZER.get_vocab_size()))
        self._vision = rng.normal(size=(3, WIDTH))
        self._scorers = rng.normal(size=(4, WIDTH))

    def encode(self, pictures: dict) -> EncodedImages:
        pixels = pictures["pixel_values"]
        self.encoded_images += pixels.shape[0]
        side = int(VISUAL_TOKENS**0.5)
        b, c, h, w = pixels.shape
        patches = pixels.reshape(b, c, side, h // side, side, w // side).mean((3, 5))  # [b, 3, side, side]
        return EncodedImages((patches.reshape(b, c, -1).transpose(0, 2, 1) @ self._vision).astype(np.float32))

    def prefill(self, request: PrefillRequest) -> PrefillResult:
        tokens, visual, b = request.tokens, request.images.visual, request.tokens.batch
        scores = visual @ self._scorers[request.agent_index]  # [b, n]
        alive, kept = np.tile(np.arange(VISUAL_TOKENS), (b, 1)), []
        for count in request.keep_counts:
            best = np.argsort(-np.take_along_axis(scores, alive, 1), axis=1, kind="stable")[:, :count]
            alive = np.sort(np.take_along_axis(alive, best, 1), axis=1)
            kept.append(alive)
        seen = np.take_along_axis(visual, alive[:, :, None], 1).sum(1)  # [b, d]
        ids = np.take_along_axis(tokens.input_ids, tokens.text_index, 1)
        real = np.take_along_axis(tokens.attention_mask, tokens.text_index, 1)
        places = np.take_along_axis(tokens.position_ids, tokens.text_index, 1)
        read = (self._embedding[ids] * np.cos(places)[:, :, None] * real[:, :, None]).sum(1)
        cache = FakeCache(seen + read, tokens.next_position)
        return PrefillResult(self._logits(cache), cache, tuple(kept))

    def decode(self, cache: FakeCache, tokens: np.ndarray) -> np.ndarray:
        self.decode_calls += 1
        cache.state = cache.state + self._embedding[tokens] * np.cos(cache.position)[:, None]
        cache.position, cache.steps = cache.position + 1, cache.steps + 1
        return self._logits(cache)

    def close(self) -> None:
        self.closed += 1

    def _logits(self, cache: FakeCache) -> np.ndarray:
        logits = np.tanh(cache.state) @ self._head
        logits[:, END_ID] += 0.9 * cache.steps
        return logits.astype(np.float32)


class FakeEngine:
    """Writes a few bytes per graph; opens a `FakeSession`."""

    name = "fake"
    builds = 0

    def check(self) -> None:
        """It works everywhere."""

    def check_request(self, request: BuildRequest) -> None:
        """It can build anything."""

    def build(self, request: BuildRequest, directory: Path) -> BuildResult:
        type(self).builds += 1
        roles = ("vision", "prefill", "decode", "weights")
        for role in roles:
            (directory / f"{role}.onnx").write_text(f"{role} {request.precision} {request.plan.to_json()}")
        return BuildResult(tuple((role, f"{role}.onnx") for role in roles), TOOLCHAIN, 23)

    def graph_flops(self, bundle: Bundle, batch: int, prompt_length: int, keep_counts: tuple[int, ...] | None) -> None:
        """It has no graph to count."""

    def open(self, bundle: Bundle, options: SessionOptions) -> FakeSession:
        return FakeSession(options)


def made_up_manifest(baseline: str | None = None) -> Manifest:
    """Two tasks' agents or a baseline, budgets 8 and 4 of 16 visual tokens, two stages in four layers; no files yet."""
    agents = (AgentEntry("mini-exist", "a" * 64, "toprl", 0), AgentEntry("mini-count", "b" * 64, "toprl", 1))
    return Manifest(
        toprl_export="0.1.0",
        model=ModelEntry(
            id="tiny",
            revision=None,
            fingerprint="f" * 64,
            family="llava",
            frontend=FRONTEND.settings,
            max_length=MAX_LENGTH,
            end_tokens=(END_ID,),
            shape=DecoderShape(4, WIDTH, 16, 1, 1, 8, TOKENIZER.get_vocab_size()),
        ),
        agents=() if baseline else agents,
        baseline=baseline,
        plan=make_plan(VISUAL_TOKENS, 4, (0, 2), "actor", (8, 4)),
        engine=EngineEntry("fake", "fp32", 23, TOOLCHAIN),
        files=(),
        build_command="toprl-export build",
        input_digest="c" * 64,
    )


def made_up_bundle(directory: Path, baseline: str | None = None) -> Bundle:
    """A whole bundle on disk that `FakeEngine` opens."""
    (directory / "agents" / "mini-exist").mkdir(parents=True)
    (directory / "agents" / "mini-exist" / "agent.json").write_text("{}")
    for name in ("vision.onnx", "prefill.onnx", "decode.onnx", "weights.bin"):
        (directory / name).write_bytes(name.encode() * 100)
    files = [
        ("vision", "vision.onnx"),
        ("prefill", "prefill.onnx"),
        ("decode", "decode.onnx"),
        ("weights", "weights.bin"),
        *(("processor", f"{PROCESSOR_DIR}/{name}") for name in FRONTEND.save(directory / PROCESSOR_DIR)),
        ("agent", "agents/mini-exist/agent.json"),
    ]
    write_manifest(directory, replace(made_up_manifest(baseline), files=file_entries(directory, files)))
    return load_bundle(directory)


def stamp(directory: Path, task: str, digest: str, verdict: str) -> Bundle:
    """Mark a bundle as validated, as `validate` does."""
    outcome = ValidationStamp(task, digest, verdict, 500, ("retention (lower end) at 8 kept >= 0.9",))
    return stamp_validation(directory, load_bundle(directory).manifest.built_sha256, outcome)
