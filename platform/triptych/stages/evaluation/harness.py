"""Tasks of lm-evaluation-harness: its requests are passes of our learner, and its metrics are made of what they say.

The driver alone needs the harness: it asks the tasks for their requests, which become rows of tokens, and gives the
tasks the log-probabilities that the workers found.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from triptych import storage
from triptych.errors import UserError
from triptych.recipe import Evaluation
from triptych.recipe.measures import LmEvalMeasure
from triptych.stages.context import StageContext
from triptych.stages.evaluation.base import Figures, MeasureTask, RowColumns, SetRows
from triptych.stages.evaluation.harness_tasks import FILTER, figure_name, figures, manager, tasks_of
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.passes import Passes
from triptych.stages.evaluation.statistics import Statistic, jackknife, mean
from triptych.stages.models import tokenizer_of
from triptych.train.batch import Batch, sample_batch
from triptych.train.tasks.forward import answer_logprob_and_greedy

if TYPE_CHECKING:
    from triptych.stages.evaluation.harness_lm import HarnessRequest

FEWSHOT_SEED = 1234
"""The harness's own seed of the examples before a question."""


def _requests(ctx: StageContext[Evaluation], name: str, models: Sequence[MeasuredModel]) -> SetRows:
    from triptych.stages.evaluation.harness_lm import Asked

    settings, field = ctx.stage.sets[name].measure, f"stages.{ctx.name}.sets.{name}.measure"
    assert isinstance(settings, LmEvalMeasure)
    asked = Asked(tokenizer_of(ctx), ctx.stage.compute.batch.max_length)
    try:
        with _harness_seeds():
            docs = sum(_ask(task, settings, asked) for task in _seeded(settings))
    except UserError as error:
        raise UserError(f"{field}.{error}") from error
    columns = asked.columns()
    counts = {"rows": docs, "requests": len(columns["prompt"]), "truncated": asked.cut}
    return SetRows(columns, storage.digest_of(columns), counts)


def _ask(task: Any, settings: LmEvalMeasure, model: Any) -> int:
    """Have the task's requests answered by a model of the harness; the number of its rows."""
    try:
        task.build_all_requests(limit=settings.limit)
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"tasks: `{task.config.task}` cannot ask its rows with num_fewshot {task.config.num_fewshot}: "
            f"{type(error).__name__}: {error}"
        ) from error
    _check_metrics(task)
    for kind in {instance.request_type for instance in task.instances}:
        try:
            getattr(model, kind)([instance for instance in task.instances if instance.request_type == kind])
        except UserError as error:
            raise UserError(f"tasks: `{task.config.task}`: {error}") from error
    return len({instance.doc_id for instance in task.instances})


def _check_metrics(task: Any) -> None:
    """UserError where a row does not give a metric that the task names, or a package is missing that makes one."""
    first = [instance for instance in task.instances if instance.doc_id == task.instances[0].doc_id]
    answers = [-1.0 if one.request_type == "loglikelihood_rolling" else (-1.0, False) for one in first]
    try:
        values = task.process_results(first[0].doc, answers)
        if missing := task.aggregation().keys() - values.keys():
            raise UserError(
                f"tasks: `{task.config.task}` names metrics that it does not give: {', '.join(sorted(missing))}"
            )
        for metric, aggregate in task.aggregation().items():
            with suppress(ArithmeticError, LookupError, TypeError, ValueError):  # for two rows may not be enough
                aggregate([values[metric]] * 2)
    except ImportError as error:
        raise UserError(f"tasks: `{task.config.task}` needs a package that is not installed: {error}") from error


def _seeded(settings: LmEvalMeasure) -> Iterable[Any]:
    """The tasks; each draws the same examples whenever it is asked."""
    for task in _loaded(settings).values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        yield task


@contextmanager
def _harness_seeds() -> Iterator[None]:
    """Random streams as of the harness's own `simple_evaluate`, for tasks that draw; those before come back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)  # noqa: NPY002 - tasks draw from it
    torch.manual_seed(FEWSHOT_SEED)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


@lru_cache(maxsize=8)
def _loaded(settings: LmEvalMeasure) -> Mapping[str, Any]:
    """The harness's tasks with their rows, by name. UserError: a data set cannot be read."""
    known = manager(settings)
    found: dict[str, Any] = {}
    for name in tasks_of(settings):
        try:
            found |= known.load([name])["tasks"]
        except (OSError, ValueError, LookupError, ImportError) as error:
            raise UserError(f"tasks: `{name}` cannot be loaded: {type(error).__name__}: {error}") from error
        fixed = settings.num_fewshot if settings.num_fewshot is not None else found[name].config.num_fewshot
        found[name].set_config(key="num_fewshot", value=fixed or 0)
    return found


def _scored(passes: Passes, rows: RowColumns, settings: Any) -> dict[str, list[Any]]:
    """The log-probability of each continuation, and whether each of its tokens is the likeliest."""
    prompts, answers = rows["prompt"], rows["answer"]

    def batch(chosen: list[int]) -> Batch:
        return sample_batch([prompts[row] for row in chosen], [answers[row] for row in chosen], passes.pad)

    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    logprobs, greedy = passes.over(sequences, batch, answer_logprob_and_greedy).unbind(dim=1)
    return {"logprob": logprobs.tolist(), "greedy": greedy.bool().tolist()}


def _metrics(found: Figures, settings: LmEvalMeasure) -> dict[str, Statistic]:
    from lm_eval import evaluate

    from triptych.stages.evaluation.harness_lm import Answered

    tasks = {task.config.task: task for task in _seeded(settings)}
    model = Answered(_answers(found))
    with _harness_seeds():
        results = evaluate(
            lm=model, task_dict={"tasks": tasks}, limit=settings.limit, bootstrap_iters=0, log_samples=True
        )
    assert results is not None
    made = {
        figure_name(name, metric): _statistic(task, metric, results["samples"][name])
        for name, task in tasks.items()
        for metric in task.aggregation()
    }
    return {name: made[name] for name in figures(settings)}


def _statistic(task: Any, metric: str, samples: Sequence[Mapping[str, Any]]) -> Statistic:
    """The harness's own aggregation of a metric of each row."""
    from lm_eval.api.metrics import mean as plain_mean

    values = [sample[metric] for sample in samples if sample["filter"] == FILTER]
    aggregate = task.aggregation()[metric]
    return mean(values) if aggregate is plain_mean else jackknife(values, aggregate)


def _answers(found: Figures) -> dict["HarnessRequest", tuple[float, bool]]:
    """Answers of the model by request; a text that is read in several windows has the sum of theirs."""
    answers: dict[HarnessRequest, tuple[float, bool]] = {}
    keys = zip(found.rows["context"], found.rows["continuation"], strict=True)
    for key, logprob, greedy in zip(keys, found.own["logprob"], found.own["greedy"], strict=True):
        before, so_far = answers.get(key, (0.0, True))
        answers[key] = before + logprob, so_far and greedy
    return answers


LM_EVAL = MeasureTask(_requests, _scored, _metrics, figures)
