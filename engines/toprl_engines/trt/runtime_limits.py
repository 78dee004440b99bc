"""What the engines' profiles allow, and one line for what they do not."""

from __future__ import annotations

from dataclasses import dataclass

from toprl_engines.trt.runtime_engine import LoadedEngine, TensorInfo
from toprl_export.errors import UserError


@dataclass(frozen=True)
class Limits:
    """The sizes that a bundle's engines were built for.

    Attributes:
        batch: least and greatest number of rows of a prompt.
        images: the same of images.
        text: the same of text tokens in a row, pads among them.
        keep_counts: least and greatest counts of every stage; None where no input says them.
    """

    batch: tuple[int, int]
    images: tuple[int, int]
    text: tuple[int, int]
    keep_counts: tuple[tuple[int, ...], tuple[int, ...]] | None

    @classmethod
    def of(cls, vision: LoadedEngine, prefill: LoadedEngine, decode: LoadedEngine) -> Limits:
        """Read from the profiles of the engines."""
        counts = prefill.tensors.get("keep_counts")
        prompts, tokens = _range(prefill.tensors["input_ids"], 0), _range(decode.tensors["token"], 0)
        return cls(
            batch=(max(prompts[0], tokens[0]), min(prompts[1], tokens[1])),
            images=_range(vision.tensors["pixel_values"], 0),
            text=_range(prefill.tensors["text_index"], 1),
            keep_counts=None if counts is None else counts.values,
        )

    def check_images(self, count: int) -> None:
        """Return when the vision engine takes ``count`` images at once.

        Raises:
            UserError: it does not.
        """
        self._check(count, self.images, "images at once", "--max-batch")

    def check_prompt(self, batch: int, text: int, keep_counts: tuple[int, ...] | None) -> None:
        """Return when the prefill engine takes such a request.

        Args:
            batch: rows.
            text: text tokens of a row, pads among them.
            keep_counts: None where nothing is pruned.

        Raises:
            UserError: it does not.
        """
        self._check(batch, self.batch, "prompts at once", "--max-batch")
        self._check(text, self.text, "text tokens in a prompt", "--max-text")
        if keep_counts is None or self.keep_counts is None:
            return
        least, greatest = self.keep_counts
        if not all(low <= kept <= high for low, kept, high in zip(least, keep_counts, greatest, strict=True)):
            raise UserError(
                f"keep counts {list(keep_counts)} are outside {list(least)} to {list(greatest)}, which the engine was "
                "built for: use one of the bundle's budgets, or build it with this one"
            )

    @staticmethod
    def _check(given: int, allowed: tuple[int, int], what: str, flag: str) -> None:
        least, greatest = allowed
        if given > greatest:
            raise UserError(
                f"the engine takes at most {greatest} {what}, {given} were given: give fewer, or build the bundle "
                f"with {flag} {given}"
            )
        if given < least:
            raise UserError(f"the engine takes at least {least} {what}, {given} were given: give more")


def no_room(new_tokens: int) -> UserError:
    """The error for caches that cannot be lengthened after a prompt and ``new_tokens``."""
    return UserError(
        f"the engine's caches are full after {new_tokens} new tokens: ask for fewer, or build the bundle with a larger "
        "--max-new-tokens"
    )


def _range(tensor: TensorInfo, axis: int) -> tuple[int, int]:
    return tensor.smallest[axis], tensor.largest[axis]
