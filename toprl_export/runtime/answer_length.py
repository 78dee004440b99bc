"""How long an answer may be, and what that leaves for its prompt."""

from __future__ import annotations

from toprl_export.errors import UserError

DEFAULT_NEW_TOKENS = 16
"""The longest answer unless told otherwise, in tokens."""


def prompt_room(max_length: int, visual_tokens: int, max_new_tokens: int = DEFAULT_NEW_TOKENS) -> int:
    """Maximum length of a prompt in tokens, the visual ones included, that leaves room for its answer.

    >>> prompt_room(max_length=1024, visual_tokens=576)
    1008

    Args:
        max_length: positions that the model has, those of the answer included.
        visual_tokens: n, the visual tokens of one image.
        max_new_tokens: the longest answer.

    Raises:
        UserError: not even one text token would fit.
    """
    room = max_length - max_new_tokens
    if room <= visual_tokens:
        raise UserError(
            f"{max_new_tokens} new tokens leave no room for a prompt, because the model has {max_length} "
            f"positions, {visual_tokens} of them visual: ask for fewer"
        )
    return room
