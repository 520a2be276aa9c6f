"""The reward of a reward model."""

from collections.abc import Callable

import torch
from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.recipe import REWARD, ModelReward
from triptych.rewards.table import REWARDS
from triptych.train.batch import Batch


def test_the_models_members_score_the_answers_as_frozen_roles() -> None:
    asked: list[tuple[str, object]] = []

    def forward(role: str, compute: Callable[[RoleModel, Batch], Tensor]) -> Tensor:
        asked.append((role, getattr(compute, "keywords", None)))
        return torch.tensor([0.5, -1.0])

    reward = REWARDS["model"](ModelReward(stage="reward@1"), ("reward", "reward_2"))
    assert reward.score([], forward).tolist() == [0.5, -1.0]
    assert asked == [(REWARD, {"roles": ("reward", "reward_2")})]
