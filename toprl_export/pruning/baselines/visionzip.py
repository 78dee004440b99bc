"""VisionZip (Yang et al. 2025): tokens that dominate in the vision tower's own attention."""

from __future__ import annotations

from torch import Tensor

from toprl_export.pruning.scorer import Scorer, ScorerNeeds, StageInputs


class VisionZipScorer(Scorer):
    """Scores a token by the attention that the vision tower pays to its patch; blind to the question.

    These are the paper's dominant tokens but for the class token, which LLaVA's decoder is not shown. Its contextual
    tokens, averages of the rest, are left out: what is compared is which tokens are kept, at an exact budget. Where the
    attention comes from is said at :meth:`~toprl_export.models.adapter.LVLMAdapter.vision_saliency`.
    """

    needs = ScorerNeeds(saliency=True)

    def forward(self, inputs: StageInputs) -> Tensor:
        """Scores, float32 ``[b, n_t]``.

        Raises:
            ValueError: the saliency was not given.
        """
        if inputs.saliency is None:
            raise ValueError("VisionZip scores by the vision tower's attention, but the walk was given no saliency")
        return inputs.saliency
