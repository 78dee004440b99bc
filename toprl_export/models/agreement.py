"""Whether our walk of a checkpoint computes what the model's own code does, and where it begins to differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toprl_export.errors import UserError, refusing
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_json_atomic
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import ReferenceRunner, to_tensors, until_end
from toprl_export.models.walk import Decision, walk_prefill
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.runtime.layout import Pictures, TokenBatch

QUESTIONS = ("what is this?", "is there anything at the left of the picture, and if so, what?")
SHAPES = ((6, 8), (9, 4))
"""Height and width of the made-up pictures, in blocks: where the number of visual tokens varies, theirs differ."""

NEW_TOKENS = 4
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""The largest difference allowed, as a share of the largest number that the model's own code makes there. Two orders of
the same float32 sums differ by some 1e-6 of it."""

ATTENTION_TOLERANCE = 1e-3
"""Of attention averaged over heads, which is at most 1."""

_OTHER = "choose a checkpoint whose text model and vision tower are like LLaVA-1.5's, or write an adapter for it"


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference in one part of the model, and the largest number that its own code has there."""

    part: str
    largest: float
    scale: float


@dataclass(frozen=True)
class Agreement:
    """What the comparison found.

    Attributes:
        differences: visual embeddings, the states entering each decoder layer, those behind the last norm, logits.
        tolerance: the share of its scale that a difference may have.
        same_tokens: whether greedy answers are those of the model's own ``generate``; None in half precision, where
            rounding alone can change them.
    """

    format: Literal["toprl-export/agreement"] = field(default="toprl-export/agreement", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    differences: tuple[Difference, ...]
    tolerance: float
    same_tokens: bool | None

    @property
    def begins(self) -> Difference | None:
        """The first part that differs by more than rounding."""
        return next((found for found in self.differences if not found.largest <= self.tolerance * found.scale), None)

    def require(self, model_id: str) -> None:
        """Refuse a model whose walk disagrees.

        Raises:
            UserError: it does; the message says from where on.
        """
        begins = self.begins
        if begins is not None:
            raise UserError(
                f"model {model_id} is not computed here as its own code computes it: {begins.part} differ by "
                f"{begins.largest:.2g} of {begins.scale:.2g}: {_OTHER}"
            )
        if self.same_tokens is False:
            raise UserError(
                f"model {model_id} answers otherwise by its own generate, though its logits agree: remove what its "
                "generation_config.json asks for beyond the most likely token"
            )


def check_agreement(adapter: LVLMAdapter) -> Agreement:
    """Hold the unpruned walk, the tower and the projector against the model's own forward and ``generate``.

    The input is two prompts of different length, so that one row is padded, each with a made-up picture.

    Raises:
        UserError: one of the two cannot compute it at all.
    """
    images = _pictures(adapter)
    with refusing(f"the own forward of model {adapter.model_id} fails", "mend its files or choose another checkpoint"):
        prompts = [_own_inputs(adapter, *asked) for asked in zip(images, QUESTIONS, strict=True)]
        own = _own_numbers(adapter, prompts)
    with refusing(f"model {adapter.model_id} cannot be walked", _OTHER):
        pictures = adapter.frontend.pictures(images)
        tokens = adapter.frontend.tokens(QUESTIONS, pictures=pictures)
        ours = _our_numbers(adapter, tokens, pictures)
    if own.keys() != ours.keys():
        raise UserError(f"model {adapter.model_id} does not run each of its layers once: {_OTHER}")
    differences = tuple(_difference(part, ours[part], theirs) for part, theirs in own.items())
    found = Agreement(differences, TOLERANCE[adapter.dtype], None)
    if found.begins is not None or adapter.dtype != torch.float32:
        return found
    with refusing(f"the own generate of model {adapter.model_id} fails", "correct its generation_config.json"):
        return Agreement(differences, found.tolerance, _same_tokens(adapter, tokens, pictures, prompts))


def known_agreement(adapter: LVLMAdapter) -> Agreement:
    """`check_agreement`, once for each checkpoint, release of the libraries and state of the code.

    Results are kept in Hugging Face's cache; one that cannot be written is done without.

    Raises:
        UserError: see `check_agreement`.
    """
    directory = _cache()
    file = None if directory is None else directory / f"{_identity(adapter)}.json"
    if file is not None and file.is_file():
        try:
            return read_file(Agreement, file)
        except UserError:
            file.unlink(missing_ok=True)  # of another release, or damaged
    found = check_agreement(adapter)
    if file is not None and found.begins is None and found.same_tokens is not False:
        with suppress(UserError):  # a full disk is no reason to refuse a model
            write_json_atomic(file, to_json(found))
    return found


def _cache() -> Path | None:
    from huggingface_hub import cached_assets_path

    try:
        directory = cached_assets_path("toprl-export", namespace="agreement")
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError:
        return None
    return directory


def _identity(adapter: LVLMAdapter) -> str:
    digest = hashlib.sha256(f"{adapter.answering_fingerprint} {adapter.dtype} {adapter.device.type}".encode())
    for library in ("torch", "transformers", "toprl-export"):
        digest.update(f" {library} {metadata.version(library)}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _pictures(adapter: LVLMAdapter) -> list[Image.Image]:
    """Colours in blocks of 40 pixels."""
    drawn = [np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8) for seed, shape in enumerate(SHAPES)]
    images = [Image.fromarray(blocks.repeat(40, axis=0).repeat(40, axis=1)) for blocks in drawn]
    return [adapter.frontend.example(image) for image in images]


def _own_inputs(adapter: LVLMAdapter, image: Image.Image, question: str) -> dict[str, Tensor]:
    """What Hugging Face's own processor makes of one prompt."""
    made = adapter.frontend.own_inputs(image, question, "pt")
    return {
        name: tensor.to(adapter.device, adapter.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in made.items()
    }


@torch.inference_mode()
def _own_numbers(adapter: LVLMAdapter, prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Prompt by prompt, so that nothing is padded."""
    found: list[dict[str, Tensor]] = []
    for inputs in prompts:
        with _entering(adapter) as states:
            output = adapter.model(**inputs, use_cache=False, logits_to_keep=1)
        features = adapter.model.get_image_features(**{name: inputs[name] for name in adapter.image_inputs})
        features = getattr(features, "pooler_output", features)
        features = torch.cat([each.reshape(-1, each.shape[-1]) for each in features])  # [n_i, d]
        found.append(_named(features, [state[0].cpu() for state in states], output.logits[:, -1]))
    return {part: torch.cat([numbers[part] for numbers in found]) for part in found[0]}


@torch.inference_mode()
def _our_numbers(adapter: LVLMAdapter, tokens: TokenBatch, pictures: Pictures) -> dict[str, Tensor]:
    runner = ReferenceRunner(adapter)
    visual = runner.encode(pictures)
    with _entering(adapter) as states:
        logits = runner.prefill(tokens, visual).logits
    # The walk holds visual tokens before text; each state goes back to its prompt slot.
    slots = torch.from_numpy(np.concatenate([tokens.visual_index, tokens.text_index], axis=1))  # [b, s]
    places, real = slots.argsort(dim=1), torch.from_numpy(tokens.attention_mask.astype(bool))
    ordered = [state.cpu().gather(1, places[..., None].expand_as(state)) for state in states]
    shown = visual.flatten(0, 1) if visual.ndim == 3 else torch.cat([visual[each.rows] for each in pictures.each])
    return _named(shown, [state[real] for state in ordered], logits)


def _named(visual: Tensor, states: list[Tensor], logits: Tensor) -> dict[str, Tensor]:
    entering = {f"the states entering decoder layer {index}": state for index, state in enumerate(states[:-1])}
    parts = {"the visual embeddings": visual, **entering, "the states entering the last norm": states[-1]}
    return {name: tensor.float().cpu() for name, tensor in {**parts, "the logits": logits}.items()}


@contextmanager
def _entering(adapter: LVLMAdapter) -> Iterator[list[Tensor]]:
    """Collects the states ``[b, s, d]`` that enter each decoder layer and the norm behind them, as they are run."""
    states: list[Tensor] = []

    def collect(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    decoder = adapter.decoder
    modules = [*(decoder.layer(index) for index in range(len(decoder))), decoder.norm]
    hooks = [module.register_forward_pre_hook(collect, with_kwargs=True) for module in modules]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _token_inputs(adapter: LVLMAdapter, tokens: TokenBatch) -> dict[str, Tensor]:
    arrays = {name: getattr(tokens, name) for name in ("input_ids", "attention_mask", "position_ids")}
    return {name: torch.from_numpy(array).to(adapter.device) for name, array in arrays.items()}


def _difference(part: str, ours: Tensor, theirs: Tensor) -> Difference:
    if ours.shape != theirs.shape:
        shapes = f"{list(ours.shape)} here, but {list(theirs.shape)} by the model's own code"
        raise UserError(f"{part} are {shapes}: {_OTHER}")
    return Difference(part, float((ours - theirs).abs().max()), float(theirs.abs().max()))


@torch.inference_mode()
def _same_tokens(
    adapter: LVLMAdapter, tokens: TokenBatch, pictures: Pictures, prompts: Sequence[dict[str, Tensor]]
) -> bool:
    runner = ReferenceRunner(adapter)
    ours = runner.generate(tokens, runner.encode(pictures), NEW_TOKENS).tokens
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    made = [adapter.model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :] for inputs in prompts]
    return ours == [until_end(row.tolist(), adapter.end_tokens) for row in made]


def require_attention(adapter: LVLMAdapter, needs: ScorerNeeds) -> None:
    """Hold the attention rows that scorers read against the model's own attention, where a scorer reads them.

    Raises:
        UserError: they differ, or the decoder's attention has parts under other names.
    """
    if needs.attention == "none":
        return
    what = f"the attention of model {adapter.model_id}, which this method scores by, cannot be computed"
    remedy = "choose a method that does not read the decoder's attention, such as an agent of the recipe toprl"
    with refusing(what, remedy):
        layers = sorted({0, len(adapter.decoder) - 1})
        pictures = adapter.frontend.pictures(_pictures(adapter))
        tokens = adapter.frontend.tokens(QUESTIONS, pictures=pictures)
        visual = ReferenceRunner(adapter).encode(pictures)
        ours = [_our_attention(adapter, tokens, visual, layer) for layer in layers]
        theirs = _own_attention(adapter, tokens, visual, layers)
    for layer, row, own in zip(layers, ours, theirs, strict=True):
        if not float((row - own).abs().max()) <= ATTENTION_TOLERANCE:
            raise UserError(f"{what} (layer {layer} differs from its own): {remedy}")


@torch.inference_mode()
def _our_attention(adapter: LVLMAdapter, tokens: TokenBatch, visual: Tensor, layer: int) -> Tensor:
    """The last token's attention on the visual tokens in ``layer``, float32 ``[b, n]``."""
    rows: list[Tensor] = []

    def keep_all(inputs: StageInputs) -> Decision:
        assert inputs.attention is not None
        rows.append(inputs.attention[:, 0])
        return Decision(torch.arange(inputs.origin.shape[1], device=visual.device).expand(tokens.batch, -1))

    needs = ScorerNeeds(attention="last", attention_layer="next")
    walk_prefill(adapter.decoder, to_tensors(tokens, adapter.device), visual, (layer,), keep_all, needs)
    return rows[0].float().cpu()


@torch.inference_mode()
def _own_attention(adapter: LVLMAdapter, tokens: TokenBatch, visual: Tensor, layers: list[int]) -> list[Tensor]:
    """The same by the text model's own eager attention, the one that shows its weights."""
    language_model = adapter.model.model.language_model
    inputs = _token_inputs(adapter, tokens)
    embeds = adapter.model.get_input_embeddings()(inputs.pop("input_ids"))  # [b, s, d]
    place = torch.from_numpy(tokens.visual_index).to(adapter.device)  # [b, n]
    if tokens.visual_rows is not None:
        visual = visual[torch.from_numpy(tokens.visual_rows).to(adapter.device)]  # [r, d] -> [b, n, d]
    embeds = embeds.scatter(1, place[..., None].expand(-1, -1, embeds.shape[-1]), visual.to(embeds.dtype))
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        maps = language_model(inputs_embeds=embeds, **inputs, use_cache=False, output_attentions=True).attentions
    finally:
        language_model.set_attn_implementation(before)
    return [maps[layer].float().mean(1)[:, -1].gather(1, place).cpu() for layer in layers]
