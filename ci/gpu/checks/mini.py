"""The embedded model: the device's logits against the CPU's, then pruned against unpruned in fp32."""

from __future__ import annotations

from functools import partial

import torch

from ci.gpu.context import Context, NotRun, Wrong
from ci.gpu.decoder_bench import DecoderBench
from ci.gpu.shapes import mini_subject
from ci.gpu.ways import CAUSAL, MASKED
from toprl_export.models.load import load_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.specs import baseline_plan
from toprl_export.pruning.plan import default_stage_layers
from toprl_export.pruning.scorer import make_scorer
from toprl_export.tasks.registry import TASKS

BUDGETS = {192: (CAUSAL,), 128: (CAUSAL, MASKED), 64: (CAUSAL,)}
LARGEST_LOGIT_ERROR = 1e-3


def check_mini(context: Context) -> None:
    """Answers to real questions first, then times."""
    questions = 4 if context.quick else 32
    for budget in (None, max(BUDGETS), min(BUDGETS)):
        name = "unpruned" if budget is None else f"{budget} kept (FastV-P)"
        context.measure("agreement", name, partial(against_cpu, context.device, questions, budget))
    DecoderBench(context, mini_subject(context.device), BUDGETS, (1, 4, 8)).run()


@torch.inference_mode()
def against_cpu(device: str, questions: int, budget: int | None) -> dict[str, float]:
    """Largest difference of a logit, and the share of equal first tokens, when the device keeps what the CPU kept.

    Raises:
        NotRun: the device is the CPU.
        Wrong: a logit differs by more than 0.001.
    """
    if device == "cpu":
        raise NotRun("not run on a GPU")
    samples = list(TASKS.get("mini-colour").samples("held-out", 0, questions))
    prompts = [sample.question for sample in samples]
    adapter = load_model("mini", "cpu")
    pixels = adapter.image_processor([sample.image for sample in samples])
    tokens = adapter.prompt_format.tokenize(adapter.tokenizer, prompts, adapter.visual_tokens)
    pruning = None
    if budget is not None:
        layers = adapter.shape.layers
        plan = baseline_plan("fastv-p", adapter.visual_tokens, layers, [budget], default_stage_layers(layers))
        pruning = Pruning.from_plan(plan, budget, make_scorer("fastv-p"))
    here, there = ReferenceRunner(adapter), ReferenceRunner(load_model("mini", device))
    wanted = here.prefill(tokens, here.encode_image(pixels), pruning)
    kept = [stage.to(device) for stage in wanted.kept] if pruning else None
    found = there.prefill(tokens, there.encode_image(pixels), pruning, forced_kept=kept)
    error = float((found.logits.cpu() - wanted.logits).abs().max())
    same = float((found.logits.cpu().argmax(-1) == wanted.logits.argmax(-1)).float().mean())
    if not error <= LARGEST_LOGIT_ERROR:
        raise Wrong(f"logits differ by {error:.2g}", {"same_first_token": same})
    return {"logit_error": error, "same_first_token": same}
