"""A bundle with the habits of Optimum's model classes: what Hugging Face's processor made in, token ids out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from toprl_export.api import LoadedBundle, load
from toprl_export.bundle import PROCESSOR_DIR
from toprl_export.errors import SAVE_AGAIN, UserError, refusing, require
from toprl_export.fields import check_types
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS, prompt_room
from toprl_export.runtime.generation import Generation, GenerationRequest, generate
from toprl_export.runtime.layout import PromptRow, TokenBatch, lay_out

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig


GREEDY: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "early_stopping": (False,),
    "encoder_repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_logits": (False,),
    "output_scores": (False,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "repetition_penalty": (1,),
    "return_dict_in_generate": (False,),
    "temperature": (0, 1),
    "top_k": (0, 1, 50),
    "top_p": (1,),
    "use_cache": (True,),
}
"""Values of Hugging Face's generation options that ask for no more than the most likely token at every step.

Those of ``temperature`` and ``top_k`` are what greedy callers write, and what transformers' own defaults have been.
"""

_HONOURED = ("max_new_tokens", "max_length", "eos_token_id", "pad_token_id")
_KINDS = {"integers": "iu", "floats": "f"}
_OF_NO_EFFECT = ("bos_token_id", "transformers_version")
"""What a generation configuration also holds, and that changes no answer to a prompt."""


class TOPRLModelForImageTextToText:
    """A bundle that answers as a Hugging Face model does, with what its processor made of pictures and prompts.

    It needs neither Optimum nor PyTorch, so it is no subclass of Optimum's. A context manager, which releases the
    engine at its end.

    >>> from transformers import AutoProcessor
    >>> processor = AutoProcessor.from_pretrained(f"{directory}/processor", backend="pil")
    >>> picture = {"type": "image", "image": np.zeros((8, 8, 3), dtype=np.uint8)}
    >>> message = {"role": "user", "content": [picture, {"type": "text", "text": "what colour is the 7?"}]}
    >>> inputs = processor.apply_chat_template(
    ...     [[message]], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    ... )
    >>> with TOPRLModelForImageTextToText.from_pretrained(directory, budget_kept=4) as model:
    ...     output = model.generate(**inputs, max_new_tokens=3)
    >>> output.dtype, output.shape[1] - inputs["input_ids"].shape[1]  # [1, s + new]
    (dtype('int64'), 3)

    Attributes:
        loaded: the bundle and its engine.
        task: whose agent prunes, unless a call names another; None for the bundle's first.
        budget_kept: average visual tokens kept, unless a call names another; None for the largest that prunes.
    """

    def __init__(self, loaded: LoadedBundle, task: str | None = None, budget_kept: int | None = None) -> None:
        """Take a loaded bundle.

        Raises:
            UserError: the bundle has no such task or budget.
        """
        check_types("from_pretrained", {"task": str | None, "budget_kept": int | None}, locals())
        loaded.bundle.agent_index(task)
        loaded.bundle.keep_counts(budget_kept)
        self.loaded = loaded
        self.task = task
        self.budget_kept = budget_kept

    @classmethod
    def from_pretrained(
        cls,
        model_id: Path | str,
        *,
        provider: str | None = None,
        task: str | None = None,
        budget_kept: int | None = None,
        threads: int | None = None,
        verify: bool = True,
    ) -> Self:
        """Verify a bundle and load its engine.

        Args:
            model_id: the directory that ``toprl-export build`` or ``optimum-cli export toprl`` wrote.
            provider: where the engine runs, by its own name or ONNX Runtime's (``cuda``, ``CUDAExecutionProvider``),
                or None for its choice.
            task: whose agent prunes; the bundle's first by default.
            budget_kept: one of the bundle's budgets, or n for no pruning; by default the largest that prunes.
            threads: CPU threads, or None for the engine's choice.
            verify: compare every file's digest first.

        Raises:
            UserError: the bundle is damaged or cannot run here, or has no such task or budget.
        """
        loaded = load(model_id, threads, provider, verify=verify)
        try:
            return cls(loaded, task, budget_kept)
        except UserError:
            loaded.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine's memory; a second call does nothing."""
        self.loaded.close()

    @cached_property
    def config(self) -> PretrainedConfig:
        """The reference model's configuration.

        Raises:
            UserError: the bundle's ``config.json`` is of a kind that this transformers does not know.
        """
        path = self.loaded.bundle.path("config")
        with refusing(f"{path} cannot be read", SAVE_AGAIN):
            from transformers import AutoConfig

            found: PretrainedConfig = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        return found

    @property
    def device(self) -> torch.device:
        """Where inputs are taken and made: the CPU, for every engine takes NumPy arrays, wherever it computes.

        Raises:
            MissingExtraError: PyTorch is not installed.
        """
        found: torch.device = require("torch", "optimum").device("cpu")
        return found

    def can_generate(self) -> bool:
        """True, as models of Hugging Face's that generate answer."""
        return True

    def generate(
        self,
        *,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int | None = None,
        task: str | None = None,
        budget_kept: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        generation_config: GenerationConfig | None = None,
        **others: Any,
    ) -> Any:
        """Answer prompts by the most likely token at every step, as ``model.generate(**processor(...))`` does.

        Args:
            input_ids: ``[b, s]`` integers, padded on the left, with n image tokens in every row; a NumPy array or a
                PyTorch tensor.
            pixel_values: ``[b, 3, h, w]``, one picture a prompt.
            attention_mask: ``[b, s]``: 0 at pads. Without it, pads are found by their token where that ends no answer.
            max_new_tokens: the longest answer, its end token included.
            task: whose agent prunes; by default as given to :meth:`from_pretrained`.
            budget_kept: as ``task``.
            eos_token_id: tokens that end an answer; the model's own by default.
            pad_token_id: what follows the end token of the shorter answers; the tokenizer's by default.
            generation_config: Hugging Face's; what is given beside it wins.
            **others: Hugging Face's other options, at values that leave the most likely token (`GREEDY`).

        Returns:
            The prompt and the answer, ``int64 [b, s + new]``, a tensor on the device of ``input_ids`` or an array as
            ``input_ids`` is.

        Raises:
            UserError: an input is missing, of another shape than the bundle takes, or asks for what it cannot do; task
                or budget is unknown; or the model was closed.
        """
        check_types("generate", {"task": str | None, "budget_kept": int | None}, locals())
        asked = _stated(generation_config) | _stated(
            {"max_new_tokens": max_new_tokens, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id, **others}
        )
        _refuse_all_but_greedy(asked)
        ids = _array("input_ids", input_ids, "integers", "[b, s]").astype(np.int64, copy=False)
        end_tokens, pad_id = self._end_tokens(asked), self._pad_id(asked)
        real = _real_tokens(ids, attention_mask, None if pad_id in end_tokens else pad_id)
        longest = _new_tokens(asked, ids.shape[1])
        request = GenerationRequest(
            pictures={"pixel_values": self._pixels(pixel_values)},
            tokens=self._tokens(ids, real, longest),
            keep_counts=self.loaded.bundle.keep_counts(self.budget_kept if budget_kept is None else budget_kept),
            agent_index=self.loaded.bundle.agent_index(self.task if task is None else task),
            max_new_tokens=longest,
            end_tokens=end_tokens,
        )
        made = generate(self.loaded.session, self.loaded.frontend.tokenizer, request)
        return _like(input_ids, np.concatenate([ids, _answers(made, pad_id)], axis=1))

    def _end_tokens(self, asked: Mapping[str, Any]) -> tuple[int, ...]:
        wanted = asked.get("eos_token_id", list(self.loaded.bundle.manifest.model.end_tokens))
        check_types("generate", {"eos_token_id": int | list[int]}, {"eos_token_id": wanted})
        return (wanted,) if isinstance(wanted, int) else tuple(wanted)

    def _pad_id(self, asked: Mapping[str, Any]) -> int:
        of_tokenizer = self.loaded.frontend.processor.tokenizer.pad_token_id
        end = self.loaded.bundle.manifest.model.end_tokens[0]
        wanted: int = asked.get("pad_token_id", end if of_tokenizer is None else of_tokenizer)
        check_types("generate", {"pad_token_id": int}, {"pad_token_id": wanted})
        return wanted

    def _pixels(self, pixel_values: Any) -> NDArray[np.float32]:
        size = self.loaded.bundle.manifest.model.image_size
        pixels = _array("pixel_values", pixel_values, "floats", f"[b, 3, {size[0]}, {size[1]}]")
        if pixels.shape[1:] != (3, *size):
            raise UserError(
                f"pixel_values are {list(pixels.shape)}, expected [b, 3, {size[0]}, {size[1]}]: prepare pictures by "
                f"the bundle's own processor, {self.loaded.bundle.dir / PROCESSOR_DIR}"
            )
        return pixels.astype(np.float32, copy=False)

    def _tokens(self, ids: NDArray[np.int64], real: NDArray[np.bool_], new_tokens: int) -> TokenBatch:
        """Prompts in the engine's layout; ``real`` ``[b, s]`` is False at pads."""
        model, image_id = self.loaded.bundle.manifest.model, self.loaded.frontend.image_token_id
        rows = [row[there].tolist() for row, there in zip(ids, real, strict=True)]
        for index, row in enumerate(rows):
            if row.count(image_id) != model.visual_tokens:
                raise UserError(
                    f"row {index} of input_ids has {row.count(image_id)} image tokens, expected {model.visual_tokens}, "
                    "those of one picture: prepare prompts by the bundle's own processor, "
                    f"{self.loaded.bundle.dir / PROCESSOR_DIR}"
                )
        longest, room = max(map(len, rows)), prompt_room(model.max_length, model.visual_tokens, new_tokens)
        if longest > room:
            raise UserError(
                f"a prompt has {longest} tokens, but at most {room} fit with {new_tokens} new ones: shorten it or ask "
                "for fewer new tokens"
            )
        prompts = [PromptRow.of(row, image_id) for row in rows]
        # Pads are masked, so any token may stand there.
        return lay_out(prompts, image_id, int(ids[0, 0]), by_rows=False)


def _stated(options: Mapping[str, Any] | GenerationConfig | None) -> dict[str, Any]:
    """Options that somebody set: Hugging Face's default for all of them is None.

    Raises:
        UserError: they are no options.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        if isinstance(options, type) or not hasattr(options, "__dict__"):
            raise UserError(f"generation_config is {_short(options)}, expected a GenerationConfig: correct the call")
        options = {name: value for name, value in vars(options).items() if not name.startswith("_")}
    return {name: value for name, value in options.items() if value is not None and name not in _OF_NO_EFFECT}


def _refuse_all_but_greedy(asked: Mapping[str, Any]) -> None:
    """Refuse what would ask for other answers than the most likely tokens.

    Raises:
        UserError: names the option.
    """
    for name, value in asked.items():
        if name in _HONOURED or any(type(value) in (bool, int, float) and value == one for one in GREEDY.get(name, ())):
            continue
        raise UserError(
            f"{name}={_short(value)} cannot be honoured: a bundle takes one picture a prompt (input_ids, pixel_values, "
            f"attention_mask) and the most likely token at every step ({', '.join(_HONOURED)}): leave {name} out"
        )


def _new_tokens(asked: Mapping[str, Any], prompt_length: int) -> int:
    """The longest answer; as with Hugging Face, ``max_length`` counts the prompt and ``max_new_tokens`` wins.

    Raises:
        UserError: one of them is no number, or the prompt is as long already.
    """
    check_types("generate", {name: int for name in asked.keys() & {"max_new_tokens", "max_length"}}, asked)
    if "max_new_tokens" in asked or "max_length" not in asked:
        return int(asked.get("max_new_tokens", DEFAULT_NEW_TOKENS))
    new = int(asked["max_length"]) - prompt_length
    if new < 1:
        raise UserError(
            f"max_length is {asked['max_length']}, but the prompt has {prompt_length} tokens already: ask for more, or "
            "give max_new_tokens, which does not count the prompt"
        )
    return new


def _is_tensor(value: Any) -> bool:
    """Whether it is PyTorch's, which is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _array(name: str, value: Any, kind: Literal["integers", "floats"], shape: str) -> NDArray[Any]:
    """A tensor or an array as an array on the host.

    Raises:
        UserError: it is missing, neither of both, or of another kind of number or number of axes.
    """
    if _is_tensor(value):
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        value = (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray):
        found = "missing" if value is None else f"of the type {type(value).__name__}"
        raise UserError(
            f"{name} is {found}, expected {shape} as a PyTorch tensor or a NumPy array: give what the processor "
            "returns with return_tensors='pt' or 'np'"
        )
    if value.ndim != shape.count(",") + 1 or value.dtype.kind not in _KINDS[kind] or value.size == 0:
        raise UserError(
            f"{name} is {value.dtype} {list(value.shape)}, expected {kind} {shape}: give what the processor returns"
        )
    return value


def _real_tokens(ids: NDArray[np.int64], attention_mask: Any, pad_id: int | None) -> NDArray[np.bool_]:
    """Which tokens of ``[b, s]`` are no pads.

    Raises:
        UserError: the mask has another shape, or pads stand elsewhere than on the left.
    """
    if attention_mask is None:
        real = np.ones(ids.shape, dtype=bool) if pad_id is None else ids != pad_id
    else:
        real = _array("attention_mask", attention_mask, "integers", "[b, s]") != 0
    if real.shape != ids.shape:
        raise UserError(
            f"attention_mask is {list(real.shape)}, expected {list(ids.shape)} as input_ids: give both of the same call"
        )
    if not (real[:, -1].all() and (np.diff(real.astype(np.int8), axis=1) >= 0).all()):
        raise UserError(
            "prompts are padded on the right or within, where an answer would follow pads: pad them on the left "
            "(processor.tokenizer.padding_side = 'left')"
        )
    return real


def _answers(made: Generation, pad_id: int) -> NDArray[np.int64]:
    """New tokens, ``int64 [b, new]``: each row's, its end token, then pads."""
    rows = [[*ids, *([] if end is None else [end])] for ids, end in zip(made.token_ids, made.ended_by, strict=True)]
    new = max(map(len, rows))
    return np.array([row + [pad_id] * (new - len(row)) for row in rows], dtype=np.int64)


def _like(given: Any, ids: NDArray[np.int64]) -> Any:
    """``ids`` as a tensor on the device of ``given`` where that is one."""
    return sys.modules["torch"].from_numpy(ids).to(given.device) if _is_tensor(given) else ids


def _short(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 40 else shown[:37] + "..."
