"""Policies of reinforcement learning that are whole models: what they start from, and what cannot go with them."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from triptych.recipe.errors import Fault
from triptych.recipe.evaluation import BASE
from triptych.recipe.method import Freeze, Full

if TYPE_CHECKING:
    from triptych.recipe.rl import Rl

Whole = Full | Freeze
"""A method that trains weights of the model itself."""


def whole_faults(stage: "Rl", stages: Collection[str]) -> Iterator[Fault]:
    """What a policy that is a whole model cannot have, and a stage that is called like the base."""
    if stage.policy == BASE and BASE in stages:
        yield Fault(("policy",), f"`{BASE}` is the base model, and a stage's name; allowed: rename the stage")
    if stage.whole is not None and stage.rollout.sync == "adapter":
        yield Fault(
            ("rollout", "sync"),
            f"adapter, and the policy is a whole model, trained by {stage.whole.name}; allowed: auto, merged",
        )


def of_adapter(stage: "Rl") -> Fault | None:
    """Reason why the stage's method cannot train a policy that starts from an adapter."""
    if stage.whole is None:
        return None
    return Fault(
        ("method",),
        f"{stage.whole.name} trains a whole model, and `{stage.policy}` is an adapter, which is trained by the method "
        f"that made it; allowed: no method, or as `policy` a whole model or `{BASE}`",
    )
