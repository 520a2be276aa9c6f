"""Algorithms of reinforcement learning, each with the settings that it alone has."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from triptych.recipe.base import Closed, Count, Fraction, Positive, TagAt
from triptych.recipe.teacher import TeacherModel, WholeDivergence
from triptych.recipe.training import Optimizer

KlPlacement = Literal["reward", "loss"]
"""Place of the KL penalty: the rewards of tokens, or the policy's loss."""


class Kl(Closed):
    """KL penalty to the reference, in the rewards or in the policy's loss."""

    coef: float = Field(0.05, ge=0)
    """Weight of the penalty; the first one where it adapts. 0: there is no reference, and no KL is measured. Left out
    for opd: 0."""
    placement: KlPlacement = "reward"
    """`reward`: subtracted from the reward of every response token. `loss`: added to the policy's loss. Left out: that
    of the algorithm's paper, `loss` for grpo, gspo and cispo."""
    kind: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the divergence (Schulman 2020, "Approximating KL divergence"). In the loss k2, whose gradient is
    that of the KL, or k3, whose gradient is not: that of k1 is 0 on average. Left out there: k3, as in GRPO's paper."""
    target: Positive | None = None
    """Nats a response that an adaptive coefficient steers to (Ziegler et al. 2019); None: the coefficient is fixed."""
    horizon: Positive = 10_000.0
    """Samples over which the adaptive coefficient moves."""


class Importance(Closed):
    """Correction for the gap between the engines' and the learner's log-probabilities."""

    level: Literal["token", "sequence"] = "token"
    """Unit that has one weight."""
    cap: Positive = 2.0
    """Largest weight."""
    floor: Positive | None = None
    """Smallest weight: units whose weight lies outside of [floor, cap] are left out of the policy's loss, and still
    counted in its mean (double-sided masks, SAO, arXiv 2607.07508). None: larger weights are set to `cap`."""

    @model_validator(mode="after")
    def _in_order(self) -> "Importance":
        if self.floor is not None and self.floor >= self.cap:
            raise ValueError(f"floor {self.floor:g} with cap {self.cap:g}; allowed: a floor less than the cap")
        return self


class Critic(Closed):
    """The value model of PPO: a trainable copy of the reward model, head included."""

    optimizer: Optimizer = Optimizer(lr=1e-4)
    """Optimizer of the value model."""
    lam: Fraction | None = None
    """Weight of later errors in the critic's targets; None: that of the advantages."""
    updates: Count = 1
    """Optimiser steps of the critic for each one of the policy, on the same minibatch."""
    warmup_steps: int = Field(0, ge=0)
    """First steps of the stage, in which the critic alone learns."""


class AlgorithmBase(Closed):
    """The part of an algorithm that is the same for all: a clip of ratios, and how tokens' losses become one."""

    grouped: ClassVar[bool] = False
    """True if the baseline of an answer is made of the other answers to its prompt."""
    kl_placement: ClassVar[KlPlacement] = "reward"
    """Place of the KL penalty where a recipe names none."""
    kl_coef: ClassVar[float] = 0.05
    """Weight of the KL penalty where a recipe names none."""

    name: str
    """Name of the algorithm."""
    clip: Positive = 0.2
    """Largest fall of a probability ratio below 1 that counts, and the largest rise where `clip_high` is None."""
    clip_high: Positive | None = None
    """Largest rise of a probability ratio above 1 that counts; None: as `clip`."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Mean of the policy's loss. `token`: over all tokens of a minibatch. `sequence`: over each answer's, then over
    answers. `constant`: the sum over answers times `max_new_tokens` (Dr. GRPO, arXiv 2503.20783)."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Largest fall and largest rise of a ratio."""
        return self.clip, self.clip if self.clip_high is None else self.clip_high

    @property
    def value_model(self) -> Critic | None:
        """Settings of the critic; None: the algorithm has none."""
        return None

    @property
    def more_rounds(self) -> int | None:
        """Rounds of sampling in place of groups without spread; None: such groups are learned from."""
        return None

    @property
    def teaching(self) -> str | None:
        """The stage, or registered version, that is learned from; None: there is no such teacher."""
        return None

    @property
    def teaching_model(self) -> TeacherModel | None:
        """The model of its own that is learned from; None: there is no such teacher."""
        return None

    @property
    def taught(self) -> bool:
        """True if there is a teacher."""
        return self.teaching is not None or self.teaching_model is not None

    @property
    def distilled(self) -> tuple[WholeDivergence, float] | None:
        """Divergence from the teacher that stands in the policy's loss, and its beta; None: there is none there."""
        return None


class ClippedRatio(AlgorithmBase):
    """An algorithm that minimises PPO's clipped surrogate."""

    dual_clip: float | None = Field(None, gt=1)
    """Largest ratio that counts where the advantage is negative (Ye et al. 2020, arXiv 1912.09729); None: any."""


class GroupBaseline(AlgorithmBase):
    """An algorithm that compares the answers to one prompt with each other."""

    grouped = True

    dynamic_sampling: int | None = Field(None, ge=0)
    """Rounds in which other prompts are sampled in place of those whose answers all have one score; such that are left
    are not learned from (DAPO, arXiv 2503.14476). None: off."""

    @property
    def more_rounds(self) -> int | None:
        return self.dynamic_sampling


class ScaledBaseline(GroupBaseline):
    """An algorithm whose advantages are a group's scores in units of their standard deviation."""

    kl_placement = "loss"

    scale: bool = True
    """Divide by the standard deviation of the group; false: its mean is subtracted, and that is all."""
    eps: Positive = 1e-6
    """Added to the standard deviation; decides what nearly equal scores are worth."""


class Ppo(ClippedRatio):
    """Schulman et al. 2017 (arXiv 1707.06347) with the details of Huang et al. 2024 (arXiv 2403.17031).

    With one sample a prompt, `critic.updates`, `critic.warmup_steps`, `critic.lam` and `importance.floor` it is the
    single-rollout PPO of arXiv 2607.07508.
    """

    name: Literal["ppo"] = "ppo"
    value_clip: Positive | None = 0.2
    """Largest change of a value that is rewarded; None: values are not clipped."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """Weight of later errors in generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""
    whiten: bool = True
    """Advantages to mean 0, variance 1 over the global batch."""
    critic: Critic = Critic()
    """The value model."""

    @property
    def value_model(self) -> Critic:
        return self.critic


class Grpo(ClippedRatio, ScaledBaseline):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

    Dr. GRPO (arXiv 2503.20783) is `scale: false, aggregation: constant` with `kl.coef: 0`. DAPO (arXiv 2503.14476) is
    `clip_high: 0.28, aggregation: token, dynamic_sampling: 10` with `kl.coef: 0`; its penalty of length is a reward.
    """

    name: Literal["grpo"] = "grpo"
    aggregation: Literal["token", "sequence", "constant"] = "sequence"
    """Mean of the policy's loss, as for every algorithm; `sequence` is the paper's."""


class Rloo(ClippedRatio, GroupBaseline):
    """REINFORCE with a leave-one-out baseline, an answer being one action (Ahmadian et al. 2024, arXiv 2402.14740)."""

    name: Literal["rloo"] = "rloo"


class ReinforcePp(ClippedRatio):
    """REINFORCE++: whitened rewards-to-go of tokens, without a critic (Hu et al. 2025, arXiv 2501.03262)."""

    name: Literal["reinforce_pp"] = "reinforce_pp"
    gamma: Fraction = 1.0
    """Discount of later rewards."""


class OnPolicyDistillation(ClippedRatio):
    """On-policy distillation: what the policy itself samples is brought to what a teacher makes of it.

    Agarwal et al. 2024 (GKD, arXiv 2306.13649), all of its samples being the policy's. `divergence: sampled` is the
    reverse KL as a policy gradient (Gu et al. 2024, arXiv 2306.08543), from the drawn tokens alone. Rewards are added
    by their weights; `weight: 0` records one alone.
    """

    name: Literal["opd"] = "opd"
    kl_coef = 0.0

    teacher: str | TeacherModel
    """What is learned from: a stage, or a registered adapter version on the same base, or a model of its own."""
    divergence: Literal["sampled"] | WholeDivergence = "sampled"
    """Distance to the teacher. `sampled`: the reverse KL by the drawn tokens, as their advantage. `reverse_kl`,
    `forward_kl`, `jsd`: over the whole vocabulary at each token, in the policy's loss beside what rewards give."""
    beta: float | None = Field(None, gt=0, lt=1)
    """Share of the teacher in the mixture of `jsd`: near 0 it learns as by the forward KL, near 1 as by the reverse
    one. None: 0.5."""
    gamma: Fraction = 0.0
    """Discount of the teacher's judgement of later tokens; 0: a token is credited with its own alone."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> "OnPolicyDistillation":
        if self.beta is not None and self.divergence != "jsd":
            raise ValueError(f"beta {self.beta:g} with divergence {self.divergence}; allowed: with divergence jsd")
        if self.distilled is not None and self.gamma:
            raise ValueError(
                f"gamma {self.gamma:g} with divergence {self.divergence}, which is of each token alone; allowed: 0, or "
                "divergence sampled"
            )
        if self.distilled is not None and self.teaching_model is not None:
            raise ValueError(
                f"divergence {self.divergence} with a teacher of its own, whose engines give the probability of the "
                "drawn tokens alone; allowed: divergence sampled, or a teacher that is an adapter on the same base"
            )
        return self

    @property
    def teaching(self) -> str | None:
        return self.teacher if isinstance(self.teacher, str) else None

    @property
    def teaching_model(self) -> TeacherModel | None:
        return None if isinstance(self.teacher, str) else self.teacher

    @property
    def distilled(self) -> tuple[WholeDivergence, float] | None:
        return None if self.divergence == "sampled" else (self.divergence, 0.5 if self.beta is None else self.beta)


class Cispo(ScaledBaseline):
    """Clipped importance weights on log-probabilities: every token keeps a gradient (MiniMax-M1, arXiv 2506.13585)."""

    name: Literal["cispo"] = "cispo"
    clip: Positive = 1.0
    """Largest fall of a ratio below 1 that counts; 1, as in the paper: there is no lower bound."""
    clip_high: Positive | None = 4.0
    """Largest rise of a ratio above 1 that counts; None: as `clip`. The default is ScaleRL's (arXiv 2510.13786)."""


class Gspo(ClippedRatio, ScaledBaseline):
    """Group sequence policy optimisation: one ratio an answer, its tokens' geometric mean (arXiv 2507.18071)."""

    name: Literal["gspo"] = "gspo"
    clip: Positive = 3e-4
    """Largest fall of an answer's ratio below 1 that counts."""
    clip_high: Positive | None = 4e-4
    """Largest rise of an answer's ratio above 1 that counts; None: as `clip`."""
    aggregation: Literal["token", "sequence", "constant"] = "sequence"
    """Mean of the policy's loss, as for every algorithm; `sequence` is the paper's."""


_Member = (
    Annotated[Ppo, Tag("ppo")]
    | Annotated[Grpo, Tag("grpo")]
    | Annotated[Rloo, Tag("rloo")]
    | Annotated[ReinforcePp, Tag("reinforce_pp")]
    | Annotated[Cispo, Tag("cispo")]
    | Annotated[Gspo, Tag("gspo")]
    | Annotated[OnPolicyDistillation, Tag("opd")]
)
AlgorithmSettings = Annotated[_Member, Discriminator(TagAt("name", default="ppo"))]
"""Settings of an algorithm, told apart by `name`; PPO's where there is none."""

SETTINGS: dict[str, type[AlgorithmBase]] = {
    model.model_fields["name"].default: model for model in (get_args(member)[0] for member in get_args(_Member))
}
"""Every algorithm's settings, by its name."""
