"""How `mini` is asked: Hugging Face's LLaVA processor over its words, with a chat template of one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toprl_export.models.mini.architecture import BEGIN, END, IMAGE, PAD, UNKNOWN, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlavaProcessor

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}:"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}"
    " {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def mini_processor(image_pixels: int, patch_size: int, mean: float = 0.5, std: float = 0.5) -> LlavaProcessor:
    """`mini`'s processor, for square pictures of a size.

    Args:
        image_pixels: side of a picture.
        patch_size: side of a patch, so that a picture has ``(image_pixels / patch_size) ** 2`` visual tokens.
        mean: subtracted from every channel, in units of 0..1.
        std: divided by.
    """
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    images = CLIPImageProcessorPil(
        do_center_crop=False,
        size={"height": image_pixels, "width": image_pixels},
        image_mean=[mean] * 3,
        image_std=[std] * 3,
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types here
        tokenizer_object=build_tokenizer(),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE},
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]  # as above
        images,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the "default" strategy drops again
        chat_template=CHAT_TEMPLATE,
    )
