"""Cost of the visual tokens by formula (TOP-RL, Eq. 8-12), in floating-point operations of one prefill of one image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from toprl_export.pruning.plan import PruningPlan, Schedule


@dataclass(frozen=True)
class FlopsReport:
    """Cost of one image's visual tokens.

    Attributes:
        unpruned: decoder without pruning.
        pruned: decoder with pruning, without the actor.
        actor: the actor at all stages; 0 for scorers that the formulas leave out.
    """

    unpruned: int
    pruned: int
    actor: int

    @property
    def ratio(self) -> float:
        """How many times less pruning costs, the actor included."""
        return self.unpruned / (self.pruned + self.actor)


def layer_flops(n: int, d: int, m: int) -> int:
    """Eq. 8: ``4nd² + 2n²d + 3ndm`` for n visual tokens, hidden size d and intermediate size m."""
    return 4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m


def decoder_flops(tokens_per_layer: Iterable[int], d: int, m: int) -> int:
    """Eq. 9-10: Eq. 8 summed over layers with the tokens each one sees."""
    return sum(layer_flops(n, d, m) for n in tokens_per_layer)


def actor_flops(d1: int, d2: int, n_t: int) -> int:
    """Eq. 11: ``2(d₁d₂ + 2d₂²)n_t`` for the n_t visual tokens that enter a stage."""
    return 2 * (d1 * d2 + 2 * d2**2) * n_t


def question_flops(d1: int, d2: int) -> int:
    """Two states of the question, each projected d₁→2d₂, counted as in Eq. 11: once a stage, however many tokens."""
    return 2 * (2 * d1) * (2 * d2)


def attention_row_flops(d: int, n_t: int, keys: bool) -> int:
    """The last text token's query and its product with n_t keys, counted as in Eq. 11.

    Args:
        d: hidden size of the decoder.
        n_t: visual tokens that enter the stage.
        keys: whether the keys must be computed too; for the layer just run they exist already, because an engine
            merges the two equal products.
    """
    return 2 * (d**2 + n_t * d) + (2 * n_t * d**2 if keys else 0)


def plan_flops(
    plan: PruningPlan,
    schedule: Schedule,
    d: int,
    m: int,
    actor_hidden: int | None,
    condition: str = "none",
    residual: str = "none",
) -> FlopsReport:
    """Eq. 12 for one schedule of a plan, its two terms apart.

    >>> from toprl_export.pruning.plan import make_plan
    >>> plan = make_plan(576, decoder_layers=32, stage_layers=[2, 8, 20], scorer="actor", budgets=[64])
    >>> report = plan_flops(plan, plan.schedule(64), d=4096, m=11008, actor_hidden=64)
    >>> f"{report.unpruned / 1e12:.2f} T, {report.ratio:.1f} times less"
    '3.82 T, 9.1 times less'

    Args:
        plan: where tokens are dropped.
        schedule: how many survive.
        d: hidden size of the decoder.
        m: intermediate size of its feed-forward network.
        actor_hidden: d₂ of the actor, None when the scorer is no actor.
        condition: the actor's; "text" costs `question_flops` at every stage.
        residual: the actor's; any costs `attention_row_flops` at every stage, "pyramiddrop" with the keys each time.

    Raises:
        UserError: a stage is outside the decoder.
    """
    actor = 0
    if actor_hidden is not None:
        entering = (plan.visual_tokens, *schedule.keep_counts[:-1])
        for n_t, layer in zip(entering, plan.stage_layers, strict=True):
            actor += actor_flops(d, actor_hidden, n_t)
            actor += question_flops(d, actor_hidden) if condition == "text" else 0
            if residual != "none":
                actor += attention_row_flops(d, n_t, keys=layer == 0 or residual == "pyramiddrop")
    return FlopsReport(
        unpruned=decoder_flops([plan.visual_tokens] * plan.decoder_layers, d, m),
        pruned=decoder_flops(plan.tokens_per_layer(schedule), d, m),
        actor=actor,
    )
