"""Roles of reinforcement learning on their models: policy, reference, critic, teacher and reward models."""

from collections.abc import Sequence

import torch

from triptych.models.adapter import Adapter
from triptych.models.heads import ScalarHead
from triptych.recipe import CRITIC, POLICY, REFERENCE, TEACHER, member_roles
from triptych.recipe.reward import role_of
from triptych.recipe.stage import REWARD
from triptych.stages.reward_models import scoring_members
from triptych.stages.role_models import RoleModels
from triptych.stages.whole_model import WholeModel


def add_roles(
    models: RoleModels,
    policy: Adapter | WholeModel,
    *rewards: Adapter | WholeModel,
    reference: bool = True,
    critic: bool = True,
    teacher: Adapter | None = None,
) -> list[tuple[str, ...]]:
    """Policy and reference from one start, reward models from the others; scores come out normalised.

    Each member of an ensemble has a role: they are returned, by reward model. The critic is a copy of the first of
    all, or, without a reward model, of the policy, with a head whose values are zero. `reference`, `critic`: whether
    there shall be such a role.
    """
    models.put(POLICY, policy, trainable=True)
    if reference:
        models.put(REFERENCE, policy, trainable=False)
    found = add_scoring_roles(models, REWARD, rewards)
    if critic:
        _add_critic(models, policy, rewards)
    if teacher is not None:
        models.put(TEACHER, teacher, trainable=False)
    return found


def _add_critic(models: RoleModels, policy: Adapter | WholeModel, rewards: Sequence[Adapter | WholeModel]) -> None:
    if rewards:
        first, head = scoring_members(rewards[0])[0]
        models.put(CRITIC, first, trainable=True, head=head)
        return
    head = ScalarHead(models.hidden_size)
    head.load(torch.zeros_like(head.weight), torch.zeros_like(head.bias))
    models.put(CRITIC, policy, trainable=True, head=head)


def add_scoring_roles(models: RoleModels, first: str, rewards: Sequence[Adapter | WholeModel]) -> list[tuple[str, ...]]:
    """Add reward models as frozen roles, one for each member; the first one's is called `first`."""
    found = []
    for number, reward in enumerate(rewards):
        members = scoring_members(reward)
        found.append(member_roles(role_of(number, first), len(members)))
        for role, (member, head) in zip(found[-1], members, strict=True):
            models.put(role, member, trainable=False, head=head)
    return found
