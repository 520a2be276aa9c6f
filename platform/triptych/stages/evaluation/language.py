"""Loss and perplexity of chats, and multiple choice: what a model's own log-probabilities say."""

from collections.abc import Sequence
from typing import Any

from triptych.data import load_rows
from triptych.data.checked import ChatCheck
from triptych.data.encode import Encoded, encode_choices, encode_sft
from triptych.recipe import Evaluation
from triptych.stages.artifact import sources
from triptych.stages.context import StageContext
from triptych.stages.evaluation.base import Figures, MeasureTask, RowColumns, SetRows
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.passes import Passes
from triptych.stages.evaluation.statistics import Statistic, exponential, mean, ratio
from triptych.stages.models import tokenizer_of
from triptych.train.batch import Batch, language_batch, sample_batch
from triptych.train.tasks.forward import answer_logprob, row_nats


def counts_of(encoded: Encoded[Any]) -> dict[str, int]:
    """Rows, and what became of those that were cut or left out."""
    left = {name: getattr(encoded, name) for name in ("truncated", "split", "dropped", "unlearnable")}
    return {"rows": len(encoded.items), **left}


def _chats(ctx: StageContext[Evaluation], name: str, models: Sequence[MeasuredModel]) -> SetRows:
    source, tokenizer, limits = sources(ctx)[name], tokenizer_of(ctx), ctx.stage.compute.batch
    rows = load_rows(source, "sft", ChatCheck(tokenizer, source.control_tokens))
    found = encode_sft(rows.items, tokenizer, limits.max_length, limits.overlength)
    columns = {"input_ids": [x.input_ids for x in found.items], "labels": [x.labels for x in found.items]}
    return SetRows(columns, rows.digest, counts_of(found))


def _nats(passes: Passes, rows: RowColumns, settings: Any) -> dict[str, list[Any]]:
    ids, labels = rows["input_ids"], rows["labels"]

    def batch(chosen: list[int]) -> Batch:
        return language_batch([(ids[row], labels[row]) for row in chosen], passes.pad)

    nats, tokens = passes.over(ids, batch, row_nats).unbind(dim=1)
    return {"nats": nats.tolist(), "tokens": tokens.long().tolist()}


def _loss(figures: Figures, settings: Any) -> dict[str, Statistic]:
    loss = ratio(figures.own["nats"], figures.own["tokens"])
    return {"loss": loss, "perplexity": exponential(loss)}


def _choices(ctx: StageContext[Evaluation], name: str, models: Sequence[MeasuredModel]) -> SetRows:
    source, tokenizer = sources(ctx)[name], tokenizer_of(ctx)
    rows = load_rows(source, "choices", ChatCheck(tokenizer, source.control_tokens))
    found = encode_choices(rows.items, tokenizer, ctx.stage.compute.batch.max_length)
    columns = {field: [getattr(x, field) for x in found.items] for field in _CHOICE}
    return SetRows(columns, rows.digest, counts_of(found))


_CHOICE = ("prompt", "choices", "characters", "right")


def _chosen(passes: Passes, rows: RowColumns, settings: Any) -> dict[str, list[Any]]:
    """The log-probability of each choice, and the choice that is made, without and with normalisation."""
    flat = [(prompt, choice) for prompt, some in zip(rows["prompt"], rows["choices"], strict=True) for choice in some]

    def batch(chosen: list[int]) -> Batch:
        prompts, answers = zip(*(flat[row] for row in chosen), strict=True)
        return sample_batch(prompts, answers, passes.pad)

    sequences = [[*prompt, *choice] for prompt, choice in flat]
    values = iter(passes.over(sequences, batch, answer_logprob)[:, 0].tolist())
    logprobs = [[next(values) for _ in some] for some in rows["choices"]]
    normed = [
        [value / size for value, size in zip(some, sizes, strict=True)]
        for some, sizes in zip(logprobs, rows["characters"], strict=True)
    ]
    return {
        "logprobs": logprobs,
        "chosen": [_best(some) for some in logprobs],
        "chosen_norm": [_best(s) for s in normed],
    }


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _accuracies(figures: Figures, settings: Any) -> dict[str, Statistic]:
    return {
        name: mean([float(a == b) for a, b in zip(figures.own[column], figures.rows["right"], strict=True)])
        for name, column in (("accuracy", "chosen"), ("accuracy_norm", "chosen_norm"))
    }


LOSS = MeasureTask(_chats, _nats, _loss)
MULTIPLE_CHOICE = MeasureTask(_choices, _chosen, _accuracies)
