"""What the rest of the project needs of a reference model; one subclass per model family."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from toprl_export.errors import UserError, refusing
from toprl_export.models.decoder import Decoder
from toprl_export.models.shape import DecoderShape
from toprl_export.pruning.plan import default_stage_layers
from toprl_export.runtime.frontend import FixedFrontend, Frontend

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_OTHER_TEXT_MODEL = "expected a stack like Llama's (embed_tokens, layers, norm, rotary_emb): choose another checkpoint"


class LVLMAdapter(ABC):
    """A frozen Hugging Face image-text-to-text model behind names that do not depend on its family.

    Attributes:
        model_id: the name or path that it was loaded by.
        revision: the hub revision, or None for a local or embedded model.
        model: the Hugging Face model, in evaluation mode, without gradients.
        frontend: turns pictures and questions into the model's inputs, without torch.
    """

    family: ClassVar[str]

    def __init__(self, model_id: str, revision: str | None, model: nn.Module, processor: Any) -> None:
        self.model_id = model_id
        self.revision = revision
        self.model: Any = model.eval().requires_grad_(False)
        self._check_parts()
        self._complete(processor)
        self.frontend = self._frontend(processor)
        with refusing(f"the text model of {model_id} is not one that can be walked", _OTHER_TEXT_MODEL):
            self.decoder = self._decoder()
            self.shape = self._shape()
        self._fingerprint: str | None = None

    def check(self) -> None:
        """Hold processor, tokenizer and configuration against each other.

        Raises:
            UserError: they do not fit.
        """
        self.frontend.check(self.model_id)
        rows = self.model.get_input_embeddings().weight.shape[0]
        name, largest = max(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        beyond = [token for token in (largest, *self.end_tokens) if not 0 <= token < rows]
        if beyond:
            raise UserError(
                f"model {self.model_id} has the token id {beyond[0]}, but embeddings for {rows} tokens alone (the "
                f"tokenizer's last token is {name!r}): resize the embeddings or correct the id"
            )
        pictures = self.frontend.pictures([self.frontend.example(Image.new("RGB", (8, 8)))])
        shortest = self.frontend.tokens(["?"], pictures=pictures).input_ids.shape[1]
        if self.max_length <= shortest:
            raise UserError(
                f"model {self.model_id} takes sequences of {self.max_length} tokens, the shortest window of its "
                f"attention included, but the shortest prompt has {shortest}: choose another checkpoint"
            )

    @property
    def fixed_frontend(self) -> FixedFrontend:
        """The frontend of a family whose pictures all have n visual tokens.

        Raises:
            UserError: the number varies with the picture.
        """
        if not isinstance(self.frontend, FixedFrontend):
            raise UserError(
                f"model {self.model_id} is of the family {self.family}, whose pictures have different numbers of "
                "visual tokens, which this release can build with a baseline and run, but not train, validate or "
                "compare: choose a checkpoint of the family llava"
            )
        return self.frontend

    @property
    def visual_tokens(self) -> int:
        """n, the visual tokens of one image.

        Raises:
            UserError: see `fixed_frontend`.
        """
        return self.fixed_frontend.visual_tokens

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of ``pixel_values``.

        Raises:
            UserError: see `fixed_frontend`.
        """
        return self.fixed_frontend.image_size

    @property
    def default_stage_layers(self) -> tuple[int, ...]:
        """Where stages stand unless the user says otherwise."""
        return default_stage_layers(self.shape.layers)

    @abstractmethod
    def encode(self, vision: Mapping[str, Tensor]) -> Tensor:
        """The arrays of `Pictures` to projected visual embeddings; exportable.

        Returns:
            ``[b, n, d]`` where n is fixed, else the rows ``[r, d]`` that `PictureTokens.rows` counts.
        """

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """``pixel_values`` ``[b, 3, h, w]`` to projected visual embeddings ``[b, n, d]``, where n is fixed."""
        return self.encode({"pixel_values": pixel_values})

    @property
    @abstractmethod
    def image_inputs(self) -> tuple[str, ...]:
        """Which of the processor's arrays the model's own ``get_image_features`` takes."""

    def vision_saliency(self, pixel_values: Tensor) -> Tensor:
        """The attention that each visual token receives in the vision tower, float32 ``[b, n]``; exportable.

        It is the class token's, averaged over heads, in the layer whose output feeds the projector (VisionZip, Yang et
        al. 2025), or the average over all patches where the tower has no class token or an untrained one.

        Args:
            pixel_values: ``[b, 3, h, w]``, as for `encode_image`.

        Raises:
            UserError: the family's tower has none that is known here.
        """
        del pixel_values
        raise UserError(
            f"the saliency of model {self.model_id} is not known, as its tower is of the family {self.family}: choose "
            "another scorer"
        )

    @abstractmethod
    def _frontend(self, processor: Any) -> Frontend: ...

    def _complete(self, processor: Any) -> None:  # noqa: B027 (most families have nothing to set)
        """Set what older checkpoints' processors leave out and the model's configuration knows."""

    def _check_parts(self) -> None:  # noqa: B027 (most families have no such parts)
        """Raise `UserError` where the model has parts that the adapter does not know."""

    def _decoder(self) -> Decoder:
        return Decoder(self.model.model.language_model, self.model.lm_head)

    def _shape(self) -> DecoderShape:
        text = self.model.config.get_text_config()
        return DecoderShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The fast tokenizer."""
        return self.frontend.tokenizer

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Token ids that end an answer: those of ``generate``, that is of generation_config.json where it has some.

        Raises:
            UserError: there is none, or it is no token's id.
        """
        text = self.model.config.get_text_config()
        end = self.model.generation_config.eos_token_id
        end = text.eos_token_id if end is None else end
        if end is None or end == []:
            raise UserError(
                f"model {self.model_id} has no end token, so no answer would end: add eos_token_id to its "
                "generation_config.json"
            )
        ids = tuple(end) if isinstance(end, list) else (end,)
        wrong = [token for token in ids if type(token) is not int]
        if wrong:
            raise UserError(
                f"model {self.model_id} has the end token {str(wrong[0])[:40]!r}, expected a token's id: correct "
                "eos_token_id in its generation_config.json"
            )
        return ids

    @property
    def max_length(self) -> int:
        """Maximum sequence length, the answer included.

        Within a sliding window attention is what it is without one, so the window is the limit where there is one.
        """
        text = self.model.config.get_text_config()
        length: int = text.max_position_embeddings
        window = sliding_window(text)
        return length if window is None else min(length, window)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, types and bytes of all weights: changes with any of them."""
        if self._fingerprint is None:
            self._fingerprint = weight_fingerprint(self.model.state_dict())
        return self._fingerprint

    @property
    def answering_fingerprint(self) -> str:
        """SHA-256 over all that the model's answers depend on: weights, configurations and processor."""
        config = self.model.config.to_dict()
        # Where the model was loaded from and by which transformers changes no answer.
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
        generation = self.model.generation_config.to_dict() | {"transformers_version": None}
        parts = [config, generation, self.frontend.fingerprint, self.end_tokens]
        text = json.dumps(parts, sort_keys=True, default=str)
        return hashlib.sha256(f"{self.fingerprint}\n{text}".encode()).hexdigest()


def weight_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sliding_window(text: Any) -> int | None:
    """The shortest span of tokens that a text model's attention is limited to, or None where every layer sees all."""
    kinds = set(getattr(text, "layer_types", None) or ())
    spans = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    if kinds:
        found = [getattr(text, name, None) for kind, name in spans.items() if kind in kinds]
    else:
        found = [getattr(text, "sliding_window", None)] if getattr(text, "use_sliding_window", True) else []
    return min((int(span) for span in found if span), default=None)
