"""The settings of a TOP-RL recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from toprl_export.errors import UserError
from toprl_export.pruning.actor import CONDITIONS, RESIDUALS
from toprl_export.pruning.baselines.specs import BASELINES
from toprl_export.pruning.schedule import DEFAULT_DECAY
from toprl_export.registry import unknown_name
from toprl_trainers.rl.reward import RewardConfig

_POSITIVE_WHOLE = (
    "images", "images_per_update", "rollouts_per_image", "hidden_size", "epochs", "minibatches",
    "validation_images", "checkpoint_every",
)  # fmt: skip


_CHOICES: Mapping[str, Sequence[str]] = {
    "threshold": ("per-image", "initial"),
    "condition": CONDITIONS,
    "residual": RESIDUALS,
    "precision": ("auto", "float32", "bfloat16"),
}


GRADIENT = "gradient"
"""The teacher that knows the gold answers, see `toprl_trainers.toprl.warm_start.gradient_saliency`."""
_TEACHERS = (GRADIENT, *(name for name in BASELINES if name != "random"))  # random choices cannot be imitated


@dataclass(frozen=True)
class WarmStart:
    """What the actor imitates before PPO: the choices of ``baseline``, or of the gradient of the gold answers
    ("gradient"), on ``updates`` batches of images."""

    baseline: str
    updates: int = 30

    def __post_init__(self) -> None:
        """Refuse an unknown baseline."""
        if self.baseline not in _TEACHERS:
            raise unknown_name("baseline to imitate in warm_start:", str(self.baseline), _TEACHERS)
        _check_whole("warm_start.updates", self.updates)


@dataclass(frozen=True)
class TOPRLConfig:
    """Settings of one training run.

    Attributes:
        updates: PPO updates; 0 for imitation alone, where there is a warm start.
        images: training images, drawn once; their embeddings are kept in memory.
        images_per_update: images whose rollouts make one batch, in each process. A policy that is blind to the question
            is rewarded for all questions of an image at once. One that looks at it (``condition`` or ``residual``) sees
            one of them (so these are pairs of image and question), and another one whenever the image is used again.
        rollouts_per_image: keep masks drawn for each of them.
        stage_layers: decoder layers before which a stage stands; None for the model's default.
        decay: ratio of each stage's keep count to the previous stage's.
        training_fraction_kept: the budget to train at, as a share of the visual tokens, or the smallest
            ``--budget-kept`` if that is less; None for the first. Top-k gives every budget at inference, so one may
            train where choosing well matters most.
        threshold: "per-image" moves the threshold of every draw so that each image keeps the scheduled number of tokens
            on average; "initial" fixes one per stage at the first update and leaves the number to the reward, and the
            agent's plan gets the budget that the policy settled on besides the requested ones.
        condition: "text" shows actor and critic the question's states.
        residual: the baseline whose score (the question's attention) the actor's score is added to.
        warm_start: a baseline to imitate before PPO, None for no warm start.
        hidden_size: d₂, width of actor and critic.
        learning_rate: of Adam at the first update; it falls as τ does.
        epochs: passes over each batch of rollouts.
        minibatches: parts of a batch, each an optimizer step.
        clip: ε of PPO's ratio.
        gradient_clip: largest gradient norm, of the actor and of the critic each.
        entropy_weight: of the entropy bonus, which keeps the policy exploring.
        discount: γ.
        gae_lambda: λ of GAE.
        group_baseline: also subtract the mean advantage of an image's rollouts.
        temperature_start: τ of the first update.
        temperature_end: τ of the last update.
        precision: of the frozen model in rollouts; "auto" takes bfloat16 where the processor has it natively. Actor and
            critic are always float32.
        reward: the parts of the reward.
        validation_images: images of the train split that are not trained on, for the card's figures.
        checkpoint_every: updates from one checkpoint to the next.
    """

    updates: int = 100
    images: int = 256
    images_per_update: int = 8
    rollouts_per_image: int = 8
    stage_layers: tuple[int, ...] | None = None
    decay: float = DEFAULT_DECAY
    training_fraction_kept: float | None = None
    threshold: Literal["per-image", "initial"] = "per-image"
    condition: Literal["none", "text"] = "none"
    residual: Literal["none", "fastv", "pyramiddrop"] = "none"
    warm_start: WarmStart | None = None
    hidden_size: int = 64
    learning_rate: float = 2e-3
    epochs: int = 3
    minibatches: int = 2
    clip: float = 0.2
    gradient_clip: float = 0.5
    entropy_weight: float = 0.003
    discount: float = 0.9
    gae_lambda: float = 0.95
    group_baseline: bool = True
    temperature_start: float = 1.0
    temperature_end: float = 0.05
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    reward: RewardConfig = field(default_factory=RewardConfig)
    validation_images: int = 48
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        for name in _POSITIVE_WHOLE:
            _check_whole(name, getattr(self, name))
        if self.warm_start is None or self.updates != 0:
            _check_whole("updates", self.updates)
        if self.updates == 0 and self.threshold == "initial":
            raise _wrong("threshold", self.threshold, "'per-image' where there are no PPO updates to settle a budget")
        if self.images_per_update > self.images:
            raise _wrong("images_per_update", self.images_per_update, f"at most the {self.images} images")
        if self.minibatches > self.images_per_update:
            raise _wrong("minibatches", self.minibatches, f"at most the {self.images_per_update} images per update")
        for name, low, high in (
            ("decay", 0, 1), ("clip", 0, 1), ("learning_rate", 0, 1), ("discount", 0, 1),
            ("gradient_clip", 0, 1e6), ("temperature_start", 0, 100), ("temperature_end", 0, self.temperature_start),
        ):  # fmt: skip
            _check_number(name, getattr(self, name), low, high)
        if self.training_fraction_kept is not None:
            _check_number("training_fraction_kept", self.training_fraction_kept, 0, 1)
        for name, high in (("entropy_weight", 1e6), ("gae_lambda", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
                raise _wrong(name, value, f"a number from 0 to {high:g}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(choices)}")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> TOPRLConfig:
        """Read a recipe's settings; what it leaves out keeps its default.

        Raises:
            UserError: an unknown name (the known ones are listed) or an impossible value.
        """
        known = _checked(settings, cls, "setting of a toprl recipe")
        if "reward" in known:
            known["reward"] = RewardConfig(**_nested(known, "reward", RewardConfig))
        if known.get("warm_start") is not None:
            known["warm_start"] = WarmStart(**{"baseline": None, **_nested(known, "warm_start", WarmStart)})
        if known.get("stage_layers") is not None:
            layers = known["stage_layers"]
            if not isinstance(layers, list) or any(type(layer) is not int for layer in layers):
                raise _wrong("stage_layers", layers, "a list of whole numbers")
            known["stage_layers"] = tuple(layers)
        return cls(**known)

    def limited(self, updates: int | None, images: int | None) -> TOPRLConfig:
        """The same with another number of updates (of the warm start, where there are no others) and of images, where
        given."""
        changed = self if updates is None else self._with_updates(updates)
        if images is None:
            return changed
        per_update = min(self.images_per_update, images)
        return replace(
            changed, images=images, images_per_update=per_update, minibatches=min(self.minibatches, per_update)
        )

    def _with_updates(self, updates: int) -> TOPRLConfig:
        if self.updates == 0 and self.warm_start is not None:
            return replace(self, warm_start=replace(self.warm_start, updates=updates))
        return replace(self, updates=updates)


def _nested(settings: Mapping[str, Any], name: str, kind: type[Any]) -> dict[str, Any]:
    if not isinstance(settings[name], Mapping):
        raise _wrong(name, settings[name], "a mapping")
    return _checked(settings[name], kind, f"{name} setting")


def _checked(settings: Mapping[str, Any], kind: type[Any], what: str) -> dict[str, Any]:
    names = [each.name for each in fields(kind)]
    for name in settings:
        if name not in names:
            raise unknown_name(what, str(name), names)
    return dict(settings)


def _check_whole(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise _wrong(name, value, "a whole number of at least 1")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
        raise _wrong(name, value, f"a number above {low:g} and at most {high:g}")


def _wrong(name: str, value: object, expected: str) -> UserError:
    return UserError(f"recipe setting {name} is {value!r}, expected {expected}: correct the recipe")
