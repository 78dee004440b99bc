"""Bundles of baselines against PyTorch, and any scorer's needs in an exported prefill, with ×8 weights.

Sizes are others than those traced; bounds are absolute for logits, whose magnitude is about 5.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.support.onnx_bundle import attention_bundle, raters_bundle, saliency_bundle, shares_bundle
from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_engines.feeds import token_feeds
from toprl_engines.graph.export import ExportJob, export_graphs
from toprl_engines.graph.signature import sizes_of
from toprl_export.api import load
from toprl_export.errors import UserError
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs, make_scorer, question_states
from toprl_export.runtime.session import EncodedImages

TOLERANCE = 1e-4
MISTAKE = 1e-2


def largest_difference(left, right) -> float:
    return float(np.abs(np.asarray(left) - np.asarray(right)).max())


def agree(result, expected) -> bool:
    same = all(np.array_equal(kept, want) for kept, want in zip(result.kept, expected.kept, strict=True))
    return same and largest_difference(result.logits, expected.logits) <= TOLERANCE


def differ(result, expected) -> bool:
    """Other tokens are kept and the logits show it."""
    return (
        not np.array_equal(result.kept[-1], expected.kept[-1])
        and largest_difference(result.logits, expected.logits) > MISTAKE
    )


def inputs_of(bundle, role: str) -> dict[str, tuple]:
    graph = onnx.load(bundle.path(role), load_external_data=False).graph
    return {value.name: sizes_of(value) for value in graph.input}


class AttentionOf(Scorer):
    """FastV with the attention of other rows."""

    def __init__(self, needs: ScorerNeeds, row: int) -> None:
        super().__init__()
        self.needs = needs
        self.row = row

    def forward(self, inputs: StageInputs) -> torch.Tensor:
        return inputs.attention[:, self.row]


@pytest.mark.parametrize("counts", [(25, 25), (13, 4), (1, 1)])
@pytest.mark.parametrize(("batch", "repeat"), [(1, 1), (3, 2)])
def test_attention(batch, repeat, counts):
    built = attention_bundle()
    request = built.request(counts, 0, batch, repeat)
    assert agree(built.open().prefill(request), built.expected(request))


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(25,), (13,), (6,)])
def test_dart_shares_out_the_count_that_the_graph_is_given(counts):
    built = shares_bundle()
    request = built.request(counts, 0, 3, 2)
    assert agree(built.open().prefill(request), built.expected(request))


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(25, 25), (13, 4)])
def test_raters_by_the_embeddings(counts):
    built = raters_bundle()
    request = built.request(counts, 0, 3, 2)
    assert agree(built.open().prefill(request), built.expected(request))


def test_control_attention_of_another_layer_or_token():
    built = attention_bundle()
    request = built.request((13, 4), batch=3)
    result = built.open().prefill(request)
    for needs, row in ((ScorerNeeds("last", "next"), -1), (ScorerNeeds("text"), 0)):
        assert differ(result, built.expected(request, AttentionOf(needs, row)))
    assert agree(result, built.expected(request, AttentionOf(ScorerNeeds("text"), -1)))  # the last text token's row


@pytest.mark.parametrize("count", [25, 12, 1])
@pytest.mark.parametrize(("batch", "repeat"), [(1, 2), (3, 1)])
def test_saliency(batch, repeat, count):
    """From pixels, through the bundle's own vision graph."""
    built = saliency_bundle()
    session, request = built.open(), built.request((count,), 0, batch, repeat)
    images = session.encode({"pixel_values": tiny_pixels(batch).numpy()})
    np.testing.assert_allclose(images.saliency, request.images.saliency, rtol=1e-3)  # from 1e-19 to nearly 1
    result, expected = session.prefill(replace(request, images=images)), built.expected(request)
    assert np.array_equal(result.kept[0], expected.kept[0])
    # PyTorch embeds the images a little differently; embeddings are about 200.
    assert largest_difference(result.logits, expected.logits) <= 1e-3
    assert agree(session.prefill(request), expected)


def test_control_saliency_of_other_images_or_reversed():
    built = saliency_bundle()
    session, request = built.open(), built.request((12,), batch=3)
    images, expected = request.images, built.expected(request)
    for saliency in (images.saliency[::-1], -images.saliency):
        assert differ(session.prefill(replace(request, images=replace(images, saliency=saliency))), expected)
    with pytest.raises(UserError, match="reads the images' saliency, which is missing"):
        session.prefill(replace(request, images=EncodedImages(images.visual)))


def test_a_baselines_graphs_take_no_agent_and_only_what_the_scorer_needs():
    attention, saliency = attention_bundle().bundle, saliency_bundle().bundle
    tokens = ["input_ids", "visual", "attention_mask", "position_ids", "visual_index", "text_index"]
    assert list(inputs_of(attention, "prefill")) == [*tokens, "keep_counts"]
    assert list(inputs_of(saliency, "prefill")) == [*tokens, "saliency", "keep_counts"]
    assert inputs_of(saliency, "prefill")["saliency"] == ("batch", 25)
    assert list(inputs_of(saliency, "prefill_unpruned")) == tokens
    assert attention_bundle().open().encode({"pixel_values": tiny_pixels(1).numpy()}).saliency is None


def test_saliency_runs_the_vision_tower_once():
    graph = onnx.load(saliency_bundle().bundle.path("vision"), load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("Conv") == 1
    assert operators.count("FlashAttention") == 2  # layers


def test_one_image_with_its_saliency_serves_several_questions():
    loaded = load(saliency_bundle().bundle.dir, threads=1, provider="cpu")
    pixels = np.random.default_rng(5).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    prompts = ["what colour is the 7?", "is there a star in the image?"]
    batched = loaded.generate(pixels, prompts, task="mini-read", budget_kept=6)
    alone = [loaded.generate(pixels, prompt, budget_kept=6).answers[0] for prompt in prompts]
    assert list(batched.answers) == alone
    assert batched.kept[0].tolist() == [batched.kept[0][0].tolist()] * 2


class EverythingOfTheQuestion(Scorer):
    """Uses all that the walk can tell of the question: states, question mask, attention of all its tokens."""

    needs = ScorerNeeds(attention="text", attention_layer="next", text=True)

    def forward(self, inputs: StageInputs) -> torch.Tensor:
        mean, last = question_states(inputs)
        likeness = torch.nn.functional.cosine_similarity(inputs.visual, (mean - last).unsqueeze(1), dim=-1)
        noticed = (inputs.attention * inputs.question_mask.unsqueeze(-1)).sum(1)  # [b, n_t]
        return noticed + likeness


def exported(scorer: Scorer, directory, layers: int, stage_layers: tuple[int, ...]):
    """A function from a request's parts to what the prefill graph alone, exported with ``scorer``, makes of them."""
    adapter = tiny_adapter(layers=layers)
    export_graphs(ExportJob(adapter, scorer, stage_layers), directory, ("prefill",))
    session = onnxruntime.InferenceSession(str(directory / "prefill.onnx"), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def compare(batch: int, repeat: int, counts: tuple[int, ...]) -> None:
        tokens, runner = tiny_tokens(adapter, batch, repeat), ReferenceRunner(adapter)
        visual = runner.encode_image(tiny_pixels(batch).numpy())
        feeds = {**token_feeds(tokens), "visual": visual.numpy(), "keep_counts": np.array(counts)}
        found = dict(zip(names, session.run(None, feeds), strict=True))
        expected = runner.prefill(tokens, visual, Pruning(stage_layers, counts, scorer))
        for stage, kept in enumerate(expected.kept):
            assert np.array_equal(found[f"kept_{stage}"], kept)
        assert largest_difference(found["logits"], expected.logits) <= TOLERANCE
        other = runner.prefill(tokens, visual, Pruning(stage_layers, counts, make_scorer("uniform")))
        assert largest_difference(found["logits"], other.logits) > MISTAKE

    return compare


def test_any_scorer_gets_what_it_asks_for(tmp_path):
    compare = exported(EverythingOfTheQuestion(), tmp_path, layers=2, stage_layers=(1,))
    compare(1, 2, (9,))
    compare(3, 1, (14,))


@pytest.mark.parametrize("name", ["divprune", "cdpruner"])
def test_baselines_that_take_one_token_after_another_do_so_in_the_graph(name, tmp_path):
    """The graph orders all tokens, for there the keep count is an input; PyTorch no more than are kept."""
    compare = exported(make_scorer(name), tmp_path, layers=2, stage_layers=(0,))
    compare(1, 2, (9,))
    compare(3, 1, (14,))
