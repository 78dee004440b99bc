"""What the rest of the project needs of a reference model; one subclass per model family."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from toprl_export.models.decoder import Decoder
from toprl_export.models.shape import DecoderShape

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from toprl_export.runtime.preprocess import ImageProcessor
    from toprl_export.runtime.prompt import PromptFormat


class LVLMAdapter(ABC):
    """A frozen Hugging Face image-text-to-text model behind names that do not depend on its family.

    Attributes:
        model_id: the name or path that it was loaded by.
        revision: the hub revision, or None for a local or embedded model.
        model: the Hugging Face model, in evaluation mode, without gradients.
        tokenizer: the fast tokenizer.
        image_processor: turns images into ``pixel_values`` without torch.
        prompt_format: how a question becomes token ids around the image.
    """

    family: ClassVar[str]
    default_prompt: ClassVar[PromptFormat]

    def __init__(
        self,
        model_id: str,
        revision: str | None,
        model: nn.Module,
        tokenizer: Tokenizer,
        image_processor: ImageProcessor,
        prompt_format: PromptFormat,
    ) -> None:
        self.model_id = model_id
        self.revision = revision
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.prompt_format = prompt_format
        self.decoder = self._decoder()
        self.shape = self._shape()
        self._fingerprint: str | None = None

    @property
    @abstractmethod
    def visual_tokens(self) -> int:
        """n, the visual tokens of one image."""

    @property
    @abstractmethod
    def default_stage_layers(self) -> tuple[int, ...]:
        """Where stages stand unless the user says otherwise."""

    @property
    @abstractmethod
    def end_tokens(self) -> tuple[int, ...]:
        """Token ids that end an answer."""

    @abstractmethod
    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """``pixel_values`` ``[b, 3, h, w]`` to projected visual embeddings ``[b, n, d]``; exportable."""

    @abstractmethod
    def vision_saliency(self, pixel_values: Tensor) -> Tensor:
        """The attention that each visual token receives in the vision tower, float32 ``[b, n]``; exportable.

        It is the class token's, averaged over heads, in the layer whose output feeds the projector (VisionZip, Yang et
        al. 2025), or the average over all patches where the tower has no class token.

        Args:
            pixel_values: ``[b, 3, h, w]``, as for `encode_image`.
        """

    @abstractmethod
    def _decoder(self) -> Decoder: ...

    @abstractmethod
    def _shape(self) -> DecoderShape: ...

    @property
    def max_length(self) -> int:
        """Maximum sequence length, the answer included."""
        length: int = self.model.config.get_text_config().max_position_embeddings
        return length

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
        """SHA-256 over all that the model's answers depend on: weights, configuration, tokenizer, images and prompt."""
        config = self.model.config.to_dict()
        # Where the model was loaded from and by which transformers changes no answer.
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
        # Neither does the version of the format that a prompt is written in.
        prompt = {name: text for name, text in asdict(self.prompt_format).items() if name not in ("format", "version")}
        parts = [config, self.tokenizer.to_str(), asdict(self.image_processor), prompt]
        text = json.dumps([*parts, self.end_tokens], sort_keys=True, default=str)
        return hashlib.sha256(f"{self.fingerprint}\n{text}".encode()).hexdigest()


def weight_fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (hex) of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
