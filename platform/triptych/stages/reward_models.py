"""Reward models as other stages use them: adapters on the base, ensembles of such, or whole models."""

from collections.abc import Sequence
from typing import Any

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.models.adapter import Adapter
from triptych.models.heads import ScalarHead
from triptych.models.peft_files import is_whole
from triptych.models.whole_reward import scoring_head, trained_method
from triptych.recipe.refusals import as_scorer
from triptych.stages.artifact import check_same_base, registered
from triptych.stages.context import StageContext
from triptych.stages.stored_adapter import StoredAdapter
from triptych.stages.whole_model import WholeModel


def reward_model(ctx: StageContext[Any], ref: str) -> StoredAdapter | WholeModel:
    """The reward model that `ref` names: a stage of this run, or `name@version` in the registry.

    Raises:
        UserError: it is of another kind, sits on another base or tokenizer, or would be rounded.
    """
    version, quantization = registered(ctx, ref), ctx.recipe.model.quantization
    check_same_base(version, ctx.base_fingerprint, ctx.recipe.model.base)
    storage.verify(version.url)
    folder = storage.local_copy(version.url)
    if not is_whole(folder):
        return StoredAdapter.read(version, "reward_model")
    method = trained_method(folder)
    if quantization and (reason := as_scorer(method, quantization)):
        raise UserError(f"{version.ref}: {reason}")
    scoring_head(folder)  # a damaged one is told before workers start
    return WholeModel(version, method)


def scoring_members(reward: Adapter | WholeModel) -> Sequence[tuple[Adapter | WholeModel, ScalarHead]]:
    """The members of a reward model, each with the head that gives its normalised scores; a whole model is one."""
    if isinstance(reward, Adapter):
        return adapter_members(reward)
    assert reward.folder is not None
    return [(reward, scoring_head(reward.folder))]


def adapter_members(reward: Adapter) -> list[tuple[Adapter, ScalarHead]]:
    """`scoring_members` of a reward model that is an adapter."""
    if reward.normalization is None:
        raise RunError("the reward model has no normalisation constants")
    found = []
    for member in (reward, *reward.others):
        head = member.scalar_head()
        head.standardize(reward.normalization.mean, reward.normalization.std)
        found.append((member, head))
    return found
