"""The word-level tokenizer of `mini`: every word of the embedded tasks and of easy-vqa."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, BEGIN, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BEGIN, END, UNKNOWN, IMAGE)
_TEXT = """
user assistant : ? . , 0 1 2 3 4 5 6 7 8 9 yes no red green blue yellow purple white black gray teal brown
circle square triangle star rectangle circles squares triangles stars is are there a an the in of what which
how many does do contain not no present image shape shapes object objects color colour digit digits number
written leftmost rightmost topmost lowest largest smallest more than between above below left right first last
second same different it this picture one two three four five
"""
WORDS = tuple(_TEXT.split())


def build_tokenizer() -> Tokenizer:
    """Lower-cases, splits at blanks and punctuation and between digits; ids are fixed by the order above."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL, *WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
