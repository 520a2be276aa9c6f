"""Answers that engines wrote: compared with the right ones, or scored by a reward model."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from triptych.data import load_rows
from triptych.data.answers import found_by, last_number, same_number, same_text
from triptych.data.checked import ChatCheck
from triptych.data.encode import encode_prompts
from triptych.data.rows import AnsweredRow, DataRow
from triptych.data.text_scores import answer_scores
from triptych.recipe import Evaluation
from triptych.recipe.measures import JudgeMeasure, VerifierMeasure
from triptych.stages.artifact import sources
from triptych.stages.context import StageContext
from triptych.stages.evaluation.base import Figures, MeasureTask, RowColumns, SetRows
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.passes import Passes
from triptych.stages.evaluation.statistics import Statistic, mean, pass_at
from triptych.stages.models import tokenizer_of
from triptych.train.batch import Batch, sample_batch
from triptych.train.tasks.forward import mean_scores


def _answered(ctx: StageContext[Evaluation], name: str, models: Sequence[MeasuredModel]) -> SetRows:
    settings = ctx.stage.sets[name].measure
    assert isinstance(settings, VerifierMeasure)
    source, tokenizer = sources(ctx)[name], tokenizer_of(ctx)
    check = partial(_with_number, chats=ChatCheck(tokenizer, source.control_tokens), match=settings.match)
    rows = load_rows(source, "answers", check)
    allowed = source.max_bad_rows - len(rows.bad)
    found = encode_prompts(rows.items, tokenizer, ctx.stage.rollout.max_prompt_tokens, allowed)
    columns = {"prompt_ids": [x.input_ids for x in found], "answers": [x.fields["answers"] for x in found]}
    return SetRows(columns, rows.digest, {"rows": len(found)})


def _with_number(row: DataRow, chats: ChatCheck, match: str) -> DataRow:
    """The row, if its answer has what is compared. ValueError: there is no number in it."""
    assert isinstance(row, AnsweredRow)
    if match == "number" and not all(last_number(answer) is not None for answer in row.answers):
        raise ValueError("answer: no number, which the verifier compares (match: number)")
    return chats(row)


def _verified(passes: Passes, rows: RowColumns, settings: VerifierMeasure) -> dict[str, list[Any]]:
    """A row's shares of right and of cut answers, its pass@k, and mean F1 of words."""
    scored = [
        [_compared(answer, right, settings) for answer in answers]
        for answers, right in zip(rows["answer"], rows["answers"], strict=True)
    ]
    found: dict[str, list[Any]] = {"answer": list(rows["answer"]), "right": list(rows["answers"])}
    found["cut"] = [_mean(some) for some in rows["cut"]]
    found["accuracy"] = [_mean([hit for hit, _ in some]) for some in scored]
    for k in settings.pass_at:
        found[f"pass_at_{k}"] = [pass_at(k, round(sum(hit for hit, _ in some)), len(some)) for some in scored]
    return found | ({"f1": [_mean([f1 for _, f1 in some]) for some in scored]} if settings.match == "words" else {})


def _compared(answer: str, right: Sequence[str], settings: VerifierMeasure) -> tuple[float, float]:
    """Exact match (0 or 1), and F1 of words where words are compared."""
    if settings.match == "words":
        return answer_scores(answer, right)
    written: str | None = answer
    same: Callable[[str, str], bool] = same_number if settings.match == "number" else same_text
    if settings.pattern is not None:
        written = found_by(settings.pattern, answer)
    return float(written is not None and any(same(written, one) for one in right)), 0.0


def _accuracy(figures: Figures, settings: VerifierMeasure) -> dict[str, Statistic]:
    own = figures.own
    passed = {name: mean(own[name]) for name in (f"pass_at_{k}" for k in settings.pass_at)}
    words = {"f1": mean(own["f1"])} if settings.match == "words" else {}
    return {"accuracy": mean(own["accuracy"]), **passed, **words, "truncated": mean(own["cut"])}


def _prompts(ctx: StageContext[Evaluation], name: str, models: Sequence[MeasuredModel]) -> SetRows:
    source, tokenizer = sources(ctx)[name], tokenizer_of(ctx)
    rows = load_rows(source, "prompts", ChatCheck(tokenizer, source.control_tokens))
    allowed = source.max_bad_rows - len(rows.bad)
    found = encode_prompts(rows.items, tokenizer, ctx.stage.rollout.max_prompt_tokens, allowed)
    return SetRows({"prompt_ids": [x.input_ids for x in found]}, rows.digest, {"rows": len(found)})


def _judged(passes: Passes, rows: RowColumns, settings: JudgeMeasure) -> dict[str, list[Any]]:
    """A row's mean score, and its share of cut answers."""
    flat = [
        (prompt, answer)
        for prompt, answers in zip(rows["prompt_ids"], rows["answer_ids"], strict=True)
        for answer in answers
    ]

    def batch(chosen: list[int]) -> Batch:
        prompts, answers = zip(*(flat[row] for row in chosen), strict=True)
        return sample_batch(prompts, answers, passes.pad)

    judges = passes.judges[settings.reward]
    found = passes.over([[*p, *a] for p, a in flat], batch, partial(mean_scores, roles=judges))
    scores = iter(found.double().tolist())
    means = [_mean([next(scores) for _ in some]) for some in rows["answer_ids"]]
    return {"answer": list(rows["answer"]), "score": means, "cut": [_mean(some) for some in rows["cut"]]}


def _scores(figures: Figures, settings: JudgeMeasure) -> dict[str, Statistic]:
    own = figures.own["score"]
    found = {"score": mean(own), "truncated": mean(figures.own["cut"])}
    if figures.first is None:
        return found
    pairs = zip(own, figures.first["score"], strict=True)
    return found | {"wins": mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


VERIFIER = MeasureTask(_answered, _verified, _accuracy)
JUDGE = MeasureTask(_prompts, _judged, _scores)
