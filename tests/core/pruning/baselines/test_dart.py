"""DART against its authors' rule written out in loops of NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.stage_inputs import only_row, random_inputs
from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.models.reference import ReferenceRunner, to_tensors
from toprl_export.models.walk import Decision, walk_prefill
from toprl_export.pruning.baselines.diversity import PIVOTS, DARTScorer
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select


def largest(norms: np.ndarray) -> list[int]:
    return sorted(np.argsort(-norms, kind="stable")[:PIVOTS].tolist())


def retained(alone: StageInputs, keep: int, least: bool = True, norms: np.ndarray | None = None) -> set[int]:
    """The visual pivots, and what each pivot takes in turn of the tokens that are left: those least similar to it."""
    visual, text = alone.visual[0].double().numpy(), alone.text[0].double().numpy()
    asked = alone.question_mask[0].numpy()
    norms = alone.key_norms[0].double().numpy() if norms is None else norms
    own = largest(norms[: len(visual)])
    kept, left = set(own), [i for i in range(len(visual)) if i not in own]
    pivots = [*visual[own], *text[asked][largest(norms[len(visual) :][asked])]]
    each, more = divmod(keep - PIVOTS, len(pivots))
    for turn, pivot in enumerate(pivots):
        similarity = visual[left] @ pivot / np.linalg.norm(visual[left], axis=-1) / np.linalg.norm(pivot)
        order = np.argsort(similarity if least else -similarity, kind="stable")
        takes = {left[i] for i in order[: each + (turn < more)]}
        kept, left = kept | takes, [i for i in left if i not in takes]
    return kept


@pytest.mark.parametrize("text", [2, 9], ids=["fewer question tokens than pivots", "more"])
def test_pivots_take_their_shares_in_turn(text):
    inputs = random_inputs(8, tokens=40, text=text, width=20)
    for row in range(3):
        for keep in (4, 8, 12, 15, 20):
            asked = replace(inputs, keep=keep)
            scores = DARTScorer()(asked)
            alone, living = only_row(asked, row), scores[row : row + 1, inputs.alive[row]]
            expected = retained(alone, keep)
            assert len(expected) == keep
            assert set(select(living, keep)[0].tolist()) == expected
            assert keep == PIVOTS or retained(alone, keep, least=False) != expected
            assert living.max() > scores[row, ~inputs.alive[row]].max()


def test_pivots_have_the_largest_keys_not_the_largest_states():
    inputs = replace(random_inputs(8, tokens=40, text=9, width=20, all_alive=True), keep=16)
    kept = set(select(DARTScorer()(inputs)[:1], 16)[0].tolist())
    alone = only_row(inputs, 0)
    states = torch.cat([alone.visual, alone.text], dim=1)[0].abs().sum(-1).double().numpy()
    assert kept == retained(alone, 16) != retained(alone, 16, norms=states)


def test_the_walk_gives_keys_and_normed_states_of_the_layer_just_run():
    adapter = tiny_adapter()
    runner, tokens = ReferenceRunner(adapter), to_tensors(tiny_tokens(adapter, 2), adapter.device)
    visual = runner.encode_image(tiny_pixels(2).numpy())
    seen: list[StageInputs] = []

    def keep_all(inputs: StageInputs) -> Decision:
        seen.append(inputs)
        return Decision(inputs.origin)

    with torch.no_grad():
        found = walk_prefill(adapter.decoder, tokens, visual, (0, 2), keep_all, DARTScorer.needs)
        plain = []
        walk_prefill(
            adapter.decoder,
            tokens,
            visual,
            (2,),
            lambda x: plain.append(x) or Decision(x.origin),
            ScorerNeeds(text=True),
        )
        for inputs, layer in zip(seen, (0, 1), strict=True):  # before layer 0 its own keys, before layer 2 those of 1
            expected = found.keys[layer].abs().sum(dim=(1, 3))
            torch.testing.assert_close(inputs.key_norms, expected, rtol=1e-4, atol=1e-4)
            assert (inputs.key_norms - found.keys[2].abs().sum(dim=(1, 3))).abs().max() > 1e-2
        torch.testing.assert_close(seen[1].visual, adapter.decoder.norm(plain[0].visual), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(seen[1].text, adapter.decoder.norm(plain[0].text), rtol=1e-4, atol=1e-4)
        assert (seen[1].visual - plain[0].visual).abs().max() > 1e-2


def test_it_asks_for_what_it_needs():
    assert DARTScorer.needs == ScorerNeeds(text=True, normed=True, key_norms=True, keep=True)
    inputs = replace(random_inputs(0), keep=8)
    for missing in ("text", "key_norms", "keep"):
        with pytest.raises(ValueError, match="no text, keys or count"):
            DARTScorer()(replace(inputs, **{missing: None}))
