"""Answers of several models by one pool: each model's own, once, and never another's."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.evaluation.conftest import likeliest, numbers, register, register_whole
from tests.support.fake_pool import STOP_TOKENS, FakePool
from tests.support.whole_reward import make_whole_reward, plain_scores
from triptych.data.table import Table
from triptych.errors import RunError
from triptych.models.base import load_causal_lm
from triptych.stages.context import StageContext, begin
from triptych.stages.evaluation import worker
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


@pytest.mark.slow
def test_judges_that_are_whole_models_score_as_transformers_does(
    asked: tuple[StageContext[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a judge that is an adapter; each is loaded once, and the base no more where nothing waits for it."""
    ctx, _ = asked
    own = ctx.base_fingerprint
    judges = {
        name: make_whole_reward(tmp_path / name, ctx.base_dir, seed=seed, fingerprint=own)
        for seed, name in ((3, "a"), (4, "b"))
    }
    about: dict[str, Any] = {"base": "tiny", "base_fingerprint": own, "lineage": {}, "metrics": {}}
    for name in judges:
        ctx.registry().register(name, tmp_path / name, kind="reward_model", **about)
    taste = ctx.stage.sets["taste"]
    sets = {name: taste.model_copy(update={"measure": taste.measure.model_copy(update={"reward": f"{name}@1"})})
            for name in judges}  # fmt: skip
    ctx = replace(ctx, run=f"{ctx.run}-whole", stage=ctx.stage.model_copy(update={"sets": ctx.stage.sets | sets}))
    encoded = {name: MEASURES[one.measure.name].encode(ctx, name, []) for name, one in ctx.stage.sets.items()}
    begin(ctx, {name: Table(one.columns, one.digest) for name, one in encoded.items()}, {})
    loaded: list[Path | None] = []
    learner = worker._learner

    def loading(ctx: StageContext[Any], device: torch.device, folder: Path | None = None) -> Any:
        loaded.append(folder)
        return learner(ctx, device, folder)

    monkeypatch.setattr(worker, "_learner", loading)
    all_judges = [judge(ctx, ref) for ref in ("taste@1", "a@1", "b@1")]
    pool: Any = FakePool(ctx.base_dir, torch.float32)
    answers = Answers(ctx, pool, merged=True)
    measure(ctx, measured_models(ctx), all_judges, answers, torch.device("cpu"))
    assert loaded[1] is None
    assert len(loaded) == 4, "the whole model, the base, two judges"
    shutil.rmtree(Path(ctx.folder) / "scores" / "b")  # as after a stage that was stopped there
    measure(ctx, measured_models(ctx), all_judges, answers, torch.device("cpu"))
    assert loaded[4:] == loaded[3:4], "answers that are there need no base"
    assert left(ctx, measured_models(ctx)) == {}
    for name, one in judges.items():
        assert one.folder is not None
        for ref in MODELS:
            said = read_answers(ctx, name, ref)["answer_ids"]
            rows = [[*prompt, *ids] for prompt, (ids,) in zip(encoded[name].columns["prompt_ids"], said, strict=True)]
            assert numbers(ctx, name, ref)["score"] == pytest.approx(
                plain_scores(one.folder, rows).tolist(), rel=1e-5, abs=1e-5
            )


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
