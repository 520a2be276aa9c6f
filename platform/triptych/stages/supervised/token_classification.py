"""Token classification: tagged words -> an adapter and a linear head that names a word's tag, read at its last token.

A causal model sees what stands before a word, never what follows it: an entity that only its right context gives away
is out of its reach.
"""

from typing import Any

from triptych.data.batches import pad_right
from triptych.forward.roles import RoleModel
from triptych.objectives import IGNORE
from triptych.recipe import CLASSIFIER
from triptych.recipe.kinds import TokenClassification
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext
from triptych.stages.supervised.heads import label, learn_labels
from triptych.stages.supervised.training import open_rows
from triptych.train.batch import Batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.token_classification import TokenTagging


def run(ctx: StageContext[TokenClassification]) -> AdapterVersion:
    """Words -> tables -> training -> registered classifier. Goes on from where an earlier call stopped."""
    return label(ctx, learn)


def batch_of_tags(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask and tags [B, T]."""
    ids, mask = pad_right([row["input_ids"] for row in rows], pad)
    tags, _ = pad_right([row["tags"] for row in rows], IGNORE)
    return {"ids": ids, "mask": mask, "tags": tags}


def learn(ctx: StageContext[TokenClassification], model: RoleModel, role: str = CLASSIFIER) -> TrainingSteps[None]:
    """On every worker."""
    objective = TokenTagging(role, ctx.stage.labels, ctx.stage.mark_entities)
    yield from learn_labels(ctx, model, objective, open_rows(ctx, batch_of_tags))
