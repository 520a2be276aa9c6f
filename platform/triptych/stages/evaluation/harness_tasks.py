"""Tasks of lm-evaluation-harness: found by name, refused before anything starts, and the figures that they give."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from triptych.errors import UserError
from triptych.recipe import Recipe
from triptych.recipe.evaluation import Evaluation
from triptych.recipe.measures import Better, LmEvalMeasure
from triptych.recipe.spec import did_you_mean

COMPARING = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")
"""Output types of tasks that compare log-probabilities and generate nothing."""
FILTER = "none"
"""The harness's name for answers as they are."""

Fields = Mapping[str, Any]
"""A task's YAML with all that it includes; functions are the paths of their code."""


def check(recipe: Recipe, stage: str) -> None:
    """Refuse tasks that are not there or cannot be measured, and gates on figures that they do not give.

    Nothing is downloaded.

    Raises:
        UserError: the field, and what is allowed; or how to install the harness.
    """
    evaluation = recipe.stages[stage]
    assert isinstance(evaluation, Evaluation)
    for name, one in evaluation.sets.items():
        if isinstance(one.measure, LmEvalMeasure):
            try:
                found = figures(one.measure)
            except UserError as error:
                raise UserError(f"stages.{stage}.sets.{name}.measure.{error}") from error
            _check_gates(evaluation, stage, name, tuple(found))


def _check_gates(evaluation: Evaluation, stage: str, name: str, known: Sequence[str]) -> None:
    for number, gate in enumerate(evaluation.gate):
        if gate.set == name and gate.metric is not None and gate.metric not in known:
            raise UserError(
                f"stages.{stage}.gate.{number}.metric: `{gate.metric}` is none of the tasks of set {name}"
                f"{did_you_mean(gate.metric, known)}; allowed: {', '.join(known)}"
            )


def figures(settings: LmEvalMeasure) -> dict[str, Better]:
    """Figures of the tasks, those of the first one first, and the direction in which each is better.

    Raises:
        UserError: the field below the measure, and what is allowed.
    """
    return {
        figure_name(task, metric): "higher" if higher else "lower"
        for task, fields in tasks_of(settings).items()
        for metric, higher in _metrics(fields).items()
    }


def figure_name(task: str, metric: str) -> str:
    """A task's metric as a figure of its set."""
    return f"{task}_{metric}"


def tasks_of(settings: LmEvalMeasure) -> dict[str, Fields]:
    """Fields of the tasks by name, tags replaced by their tasks.

    Raises:
        UserError: as of `figures`.
    """
    index = _index(settings)
    found: dict[str, Fields] = {}
    for number, name in enumerate(settings.tasks):
        if name not in index:
            raise UserError(
                f"tasks.{number}: no task `{name}`{did_you_mean(name, list(index))}; `lm_eval ls` lists all"
            )
        for task in sorted(index[name].tags) if index[name].kind.name == "TAG" else [name]:
            if reason := _refusal(task, index[task], settings):
                raise UserError(f"tasks.{number}: {reason}")
            found[task] = index[task].cfg
    return found


def manager(settings: LmEvalMeasure) -> Any:
    """The harness's `TaskManager` that has the tasks.

    Raises:
        UserError: the harness is not installed, or there is no folder `include_path`.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"name: lm_eval is measured by lm-evaluation-harness, and it cannot be imported ({error}); "
            "install it by pip install 'triptych[lm-eval]'"
        ) from error
    if settings.include_path is not None and not Path(settings.include_path).expanduser().is_dir():
        raise UserError(f"include_path: {settings.include_path} is no folder of this machine")
    own = _manager(settings.include_path, False) if settings.include_path is not None else None
    if own is not None and all(name in own.task_index for name in settings.tasks):
        return own  # to read the harness's own 14,000 files takes 10 seconds
    return _manager(settings.include_path, True)


@lru_cache(maxsize=8)
def _manager(include_path: str | None, with_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    own = None if include_path is None else str(Path(include_path).expanduser())
    return TaskManager(include_path=own, include_defaults=with_defaults)


def _index(settings: LmEvalMeasure) -> Mapping[str, Any]:
    index: Mapping[str, Any] = manager(settings).task_index
    return index


def _refusal(name: str, entry: Any, settings: LmEvalMeasure) -> str | None:
    """The reason why a task cannot be measured here; None: it can."""
    if entry.kind.name == "GROUP":
        parts = [part for part in entry.cfg.get("task") or [] if isinstance(part, str)]
        return f"`{name}` is a group; allowed: tasks and tags, such as its {', '.join(parts[:5]) or 'tasks'}"
    if entry.kind.name != "TASK":
        return f"`{name}` is a class in Python, which does not say its figures beforehand; allowed: tasks in YAML"
    reasons = [*_code(entry.cfg), *_kind(entry.cfg), *_examples(entry.cfg, settings)]
    return f"`{name}` {reasons[0]}" if reasons else None


def _code(fields: Fields) -> Iterator[str]:
    """Code that is not the harness's own, and that nobody has looked at."""
    if fields.get("unsafe_code"):
        yield "runs code that a model wrote (unsafe_code); allowed: tasks that run none"
    if (fields.get("dataset_kwargs") or {}).get("trust_remote_code"):
        yield "has a data set that is code from the hub (trust_remote_code); allowed: tasks whose data are files"
    import lm_eval.api.metrics  # noqa: F401  # fills the registry
    from lm_eval.api.registry import METRIC_REGISTRY

    for one in fields.get("metric_list") or []:
        own = fields.get("process_results") or one["metric"] in METRIC_REGISTRY
        if one.get("hf_evaluate") or not own:
            yield f"has the metric {one['metric']}, which is code from the hub; allowed: the harness's own metrics"


def _kind(fields: Fields) -> Iterator[str]:
    """What else a task is that is not measured."""
    kind = fields.get("output_type", "generate_until")
    if kind not in COMPARING:
        yield (
            f"has output_type {kind}, and lm_eval measures tasks that compare log-probabilities; "
            f"allowed: {', '.join(COMPARING)}; for generated answers there is measure verifier"
        )
    if fields.get("doc_to_image") or fields.get("doc_to_audio"):
        yield "shows images or sounds; allowed: tasks of text"
    filters = [one["name"] for one in fields.get("filter_list") or []]
    if filters and FILTER not in filters:
        yield f"has the filters {', '.join(filters)}; allowed: none, or one of that name"
    unknown = [metric for metric, higher in _metrics(fields).items() if higher is None]
    if unknown:
        yield f"does not say whether more {unknown[0]} is better; give higher_is_better in its metric_list"


def _examples(fields: Fields, settings: LmEvalMeasure) -> Iterator[str]:
    if settings.num_fewshot and fields.get("num_fewshot") == 0:
        yield f"is a task without examples (num_fewshot: 0), and the recipe asks for {settings.num_fewshot}; allowed: 0"


def _metrics(fields: Fields) -> dict[str, bool | None]:
    """A task's metrics, and whether more is better; None: neither it nor the harness says so."""
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, is_higher_better

    listed = fields.get("metric_list") or [
        {"metric": metric} for metric in DEFAULT_METRIC_REGISTRY[fields.get("output_type", "generate_until")]
    ]
    return {one["metric"]: one.get("higher_is_better", is_higher_better(one["metric"])) for one in listed}
