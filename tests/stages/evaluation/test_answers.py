"""Answers of several models by one pool: each model's own, once, and never another's."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.evaluation.conftest import likeliest, register, register_whole
from tests.support.fake_pool import STOP_TOKENS, FakePool
from triptych.data.table import Table
from triptych.errors import RunError
from triptych.models.base import load_causal_lm
from triptych.stages.context import StageContext, begin
from triptych.stages.evaluation.answers import Answers, read_answers
from triptych.stages.evaluation.comparison import estimates, flat
from triptych.stages.evaluation.models import judge, measured_models
from triptych.stages.evaluation.table import MEASURES
from triptych.stages.evaluation.worker import left, measure

MODELS = ["whole@1", "tuned@1", "base"]


@pytest.fixture
def asked(
    evaluate: Callable[..., Any], write_rows: Callable[..., Any], tmp_path: Path
) -> tuple[StageContext[Any], Any]:
    """A stage that verifies and judges the answers of three models; the models, by name."""
    data = write_rows("sums", [{"prompt": f"{n} + {n}?", "answer": 2 * n} for n in range(3)])
    measures = {"sums": {"name": "verifier"}, "taste": {"name": "judge", "reward": "taste@1"}}
    sets = {name: {"data": data, "measure": one} for name, one in measures.items()}
    ctx = evaluate(MODELS, sets, rollout={"sampling": {"max_new_tokens": 6}})
    register(ctx, "taste", tmp_path, "reward_model")
    models = {
        "tuned@1": register(ctx, "tuned", tmp_path)[1],
        "whole@1": register_whole(ctx, "whole", tmp_path),
        "base": load_causal_lm(ctx.base_dir, torch.float32),
    }
    encoded = {name: MEASURES[one.measure.name].encode(ctx, name, []) for name, one in ctx.stage.sets.items()}
    begin(ctx, {name: Table(one.columns, one.digest) for name, one in encoded.items()}, {})
    return ctx, models


def measured_by(ctx: StageContext[Any], pool: Any) -> None:
    answers = Answers(ctx, pool, merged=True)
    measure(ctx, measured_models(ctx), [judge(ctx, "taste@1")], answers, torch.device("cpu"))


@pytest.mark.slow
def test_each_model_answers_for_itself_and_is_asked_once(asked: tuple[StageContext[Any], Any]) -> None:
    ctx, models = asked
    pool = FakePool(ctx.base_dir, torch.float32)
    measured_by(ctx, pool)
    assert left(ctx, measured_models(ctx)) == {}
    assert len(pool.requests) == 6
    said = {}
    for ref, model in models.items():
        prompts = [record.prompt_ids for record in pool.records[0]]
        if ref == "tuned@1":
            with model.use("role"):
                own = [likeliest(model.lm, list(prompt), 6, list(STOP_TOKENS)) for prompt in prompts]
        else:
            own = [likeliest(model, list(prompt), 6, list(STOP_TOKENS)) for prompt in prompts]
        said[ref] = [ids for (ids,) in read_answers(ctx, "sums", ref)["answer_ids"]]
        assert said[ref] == own
    assert said["base"] != said["tuned@1"] != said["whole@1"] != said["base"]
    figures = flat(ctx.stage, estimates(ctx))
    assert {key for key in figures if key.endswith("wins")} == {"taste.tuned@1.wins", "taste.base.wins"}
    measured_by(ctx, pool)
    assert len(pool.requests) == 6, "what is there is not asked for again"


class Stuck(FakePool):
    """A pool whose weights stay those of the base."""

    def sync(self, adapter: bytes, adapter_config: dict[str, Any], version: int) -> Any:
        return None

    def replace(self, buckets: Iterable[bytes], version: int) -> Any:
        return None


def test_engines_that_run_other_weights_are_found_out(asked: tuple[StageContext[Any], Any]) -> None:
    ctx, _ = asked
    with pytest.raises(RunError, match=r"is off the learner by .* nats a token after the sync"):
        measured_by(ctx, Stuck(ctx.base_dir, torch.float32))
    assert left(ctx, measured_models(ctx)).keys() == set(MODELS), "no such answer is kept"
