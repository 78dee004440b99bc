"""How long an answer may be, and what that leaves for its prompt."""

from __future__ import annotations

from toprl_export.errors import UserError

DEFAULT_NEW_TOKENS = 16
"""The longest answer unless told otherwise, in tokens."""


def prompt_room(max_length: int, visual_tokens: int, max_new_tokens: int = DEFAULT_NEW_TOKENS) -> int:
    """The most tokens that a prompt may have, the visual ones included, so that its answer still fits.

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
            f"{max_new_tokens} new tokens leave no room for a prompt, for the model holds {max_length} "
            f"positions, {visual_tokens} of them visual: ask for fewer"
        )
    return room
