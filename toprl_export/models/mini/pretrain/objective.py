"""The two training losses of `mini`: what each patch shows, and the answers to packed questions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from toprl_export.models.mini.architecture import DECODER_HIDDEN, VISION_HIDDEN, build_tokenizer
from toprl_export.models.mini.pretrain.batches import IGNORED, KINDS, PALETTE, PackedBatch, PatchBatch
from toprl_export.tasks.scenes import GRID

PATCHES = 576
ATTENTION = "plain_matmul"
IMAGE_MEAN, IMAGE_STD = 0.5, 0.25
ALIGNMENT_SCALE = 10.0
PLACE_SCALE = 20.0


def plain_matmul_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention by two matrix products: in bfloat16 on CPUs two to three times faster than the fused kernel."""
    del module
    scores = (q @ k.transpose(-1, -2)) * scaling
    if mask is not None:
        scores = scores + mask
    return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous(), None


def prepare_for_training(model: LlavaForConditionalGeneration) -> None:
    """Make both towers use `plain_matmul_attention`, and compile their layers: half as long again without."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, plain_matmul_attention)
    model.set_attn_implementation(ATTENTION)
    for layer in (*model.model.language_model.layers, *model.model.vision_tower.encoder.layers):
        layer.compile(dynamic=True)


def normalized(images: Tensor) -> Tensor:
    """``uint8 [b, h, w, 3]`` to normalised ``float32 [b, 3, h, w]``, as the shipped image processor does."""
    return (images.permute(0, 3, 1, 2).float() / 255.0 - IMAGE_MEAN) / IMAGE_STD


class PatchHeads(nn.Module):
    """Linear read-outs: kind and colour from the tower's features, place from projected ones; in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Linear(VISION_HIDDEN, len(KINDS) + 1)
        self.colour = nn.Linear(VISION_HIDDEN, len(PALETTE))
        self.place = nn.Linear(DECODER_HIDDEN, 2)

    def loss(self, features: Tensor, batch: PatchBatch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropies summed, and the share of object patches of the right kind; features ``[b, 576, d]``."""
        kinds, colours = self.kind(features).float(), self.colour(features).float()
        weight = torch.ones(len(KINDS) + 1)
        weight[-1] = 0.1  # most patches are background
        loss = F.cross_entropy(kinds.flatten(0, 1), batch.kinds.flatten(), weight=weight, ignore_index=IGNORED)
        loss = loss + F.cross_entropy(colours.flatten(0, 1), batch.colours.flatten(), ignore_index=IGNORED)
        shown = batch.colours != IGNORED
        return loss, (kinds.argmax(-1) == batch.kinds)[shown].float().mean()


def alignment_loss(model: LlavaForConditionalGeneration, visual: Tensor, batch: PatchBatch) -> Tensor:
    """LLaVA's feature alignment: an object's projected patches ``[b, 576, d]`` name its kind and colour in words."""
    shown = batch.colours != IGNORED
    words = model.model.language_model.embed_tokens.weight  # [V, d]
    named = F.normalize(visual[shown].float(), dim=-1) @ F.normalize(words, dim=-1).T * ALIGNMENT_SCALE
    kinds, colours = named[:, word_ids(KINDS)], named[:, word_ids(PALETTE)]
    return F.cross_entropy(kinds, batch.kinds[shown]) + F.cross_entropy(colours, batch.colours[shown])


@lru_cache
def word_ids(words: tuple[str, ...]) -> Tensor:
    """Token ids of single words, ``int64 [w]``."""
    tokenizer = build_tokenizer()
    return torch.tensor([tokenizer.encode(word, add_special_tokens=False).ids[0] for word in words])


def place_loss(heads: PatchHeads, visual: Tensor) -> Tensor:
    """Squared error of row and column, in units of the grid's side, read from projected patches ``[b, 576, d]``."""
    places = torch.stack([torch.arange(PATCHES) // GRID, torch.arange(PATCHES) % GRID], dim=-1) / GRID  # [576, 2]
    return F.mse_loss(heads.place(visual).float(), places.expand(len(visual), -1, -1)) * PLACE_SCALE


@dataclass(frozen=True)
class AnswerResult:
    """Losses of answers, hints, alignment and places; per question its task and whether all was right, ``[q]``."""

    loss: Tensor
    hints: Tensor
    alignment: Tensor
    places: Tensor
    tasks: Tensor
    right: Tensor


def vision_features(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """The tower's patch features, ``[b, 576, 128]``."""
    features: Tensor = model.model.vision_tower(normalized(images)).last_hidden_state[:, 1:]
    return features


def answer_questions(
    model: LlavaForConditionalGeneration,
    heads: PatchHeads,
    prefix: Tensor,
    features: Tensor,
    batch: PackedBatch,
    kept: Tensor,
) -> AnswerResult:
    """Answer every packed question of every image in one pass.

    Args:
        model: `mini`.
        heads: reads the patches' places.
        prefix: token ids before the image, ``int64 [p]``.
        features: the tower's output, ``[b, 576, 128]``.
        batch: the packed questions.
        kept: indices of the visual tokens to show, ascending, ``int64 [b, k]``.
    """
    visual = model.model.multi_modal_projector(features)
    alignment, places = alignment_loss(model, visual, batch.patches), place_loss(heads, visual)
    visual = visual.gather(1, kept[..., None].expand(-1, -1, visual.shape[-1]))  # [b, k, d]
    decoder, rows = model.model.language_model, len(kept)
    lead = decoder.embed_tokens(prefix).expand(rows, -1, -1)
    hidden = torch.cat([lead, visual.to(lead.dtype), decoder.embed_tokens(batch.tokens)], dim=1)  # [b, p+k+q, d]
    shared = torch.arange(len(prefix)).expand(rows, -1)
    questions = batch.offsets + len(prefix) + PATCHES
    positions = torch.cat([shared, kept + len(prefix), questions], dim=1)
    segments = torch.cat([torch.zeros_like(shared), torch.zeros_like(kept), batch.segments], dim=1)
    padding = torch.cat([torch.zeros_like(shared), torch.zeros_like(kept), batch.segments == 0], dim=1).bool()
    mask = packed_mask(positions, segments, padding)
    rotary = decoder.rotary_emb(hidden, positions)
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    hidden = decoder.norm(hidden[:, -batch.tokens.shape[1] :])
    answer_mask = batch.labels != IGNORED
    logits = model.lm_head(hidden[answer_mask]).float()  # [answer tokens, vocabulary]
    labels = batch.labels[answer_mask]
    hinted = batch.hints != IGNORED
    hints = F.cross_entropy(model.lm_head(hidden[hinted]).float(), batch.hints[hinted])
    tasks, right = _grade(logits, labels, batch, answer_mask)
    return AnswerResult(F.cross_entropy(logits, labels), hints, alignment, places, tasks, right)


def packed_mask(positions: Tensor, segments: Tensor, padding: Tensor) -> Tensor:
    """Additive mask ``bfloat16 [b, 1, s, s]``: causal, and questions see the image and themselves only."""
    earlier = positions[:, :, None] >= positions[:, None, :]
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    allowed = earlier & visible & ~padding[:, None, :]
    allowed |= torch.eye(positions.shape[1], dtype=torch.bool)
    return torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill_(~allowed, -1e4)[:, None]


def _grade(logits: Tensor, labels: Tensor, batch: PackedBatch, answer_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each question's task, and whether all its answer tokens were predicted; both ``[questions]``."""
    width = int(batch.segments.max()) + 1
    owner = (torch.arange(len(answer_mask))[:, None] * width + batch.segments)[answer_mask]
    question, owner = torch.unique(owner, return_inverse=True)
    wrong = torch.zeros(len(question)).index_add_(0, owner, (logits.argmax(-1) != labels).float())
    tasks = torch.zeros(len(question), dtype=torch.int64).index_copy_(0, owner, batch.tasks[answer_mask])
    return tasks, wrong == 0
