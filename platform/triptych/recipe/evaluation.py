"""The stage kind that measures models beside each other, and stops a graph where one is not good enough."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, field_validator, model_validator

from triptych.recipe.base import Closed, Count, Name, NoEffect
from triptych.recipe.data import Source
from triptych.recipe.errors import Fault
from triptych.recipe.heldout import pass_at_faults
from triptych.recipe.measures import Better, Measure, VerifierMeasure
from triptych.recipe.method import names_of
from triptych.recipe.refusals import as_policy, is_lora
from triptych.recipe.rollout import LEAST_TEMPERATURE, Engines, Sampling
from triptych.recipe.spec import Path, did_you_mean
from triptych.recipe.stage import CLASSIFIER, REWARD, HeadSpec, Output, Reference, RoleSpec, StageBase, method_of
from triptych.recipe.training import RowLimits, Workers
from triptych.recipe.work_shape import MeasuringShape, SamplingShape

BASE = "base"
"""The word for the base model alone, among the models of an evaluation."""
STRATEGIES = ("auto", "single", "ddp")
"""Strategies of workers that only measure: each has a copy of the model."""


class EvaluationSet(Closed):
    """Rows, and what is measured on them."""

    data: Source | None = None
    """The rows; None with a measure whose tasks bring them."""
    measure: Measure
    """What is measured."""

    @model_validator(mode="after")
    def _rows_where_they_are_read(self) -> "EvaluationSet":
        if self.data is None and self.measure.rows is not None:
            raise ValueError(f"no `data`, and {self.measure.name} measures rows; give `data`")
        if self.data is not None and self.measure.rows is None:
            raise ValueError(f"`data`, and the tasks of {self.measure.name} bring their own rows; allowed: no `data`")
        return self


class FigureGate(Closed):
    """A limit on one figure of one model. Give exactly one of `at_least`, `at_most` and `better_than`."""

    set: str
    """A set of the stage."""
    model: str
    """One of the stage's models."""
    metric: str | None = None
    """A figure of the set; None: its first."""
    at_least: float | None = None
    """Least value of the figure."""
    at_most: float | None = None
    """Largest value of the figure."""
    better_than: str | None = None
    """A model that this one must surpass on the same rows: the whole 95 % interval of the difference must be on the
    better side."""
    by: float = 0.0
    """With `better_than`, the gain that the interval must exceed; below 0: a loss that is still allowed."""

    @model_validator(mode="after")
    def _one_limit(self) -> "FigureGate":
        if sum(limit is not None for limit in (self.at_least, self.at_most, self.better_than)) != 1:
            raise ValueError("give exactly one of `at_least`, `at_most` and `better_than`")
        if self.by and self.better_than is None:
            raise ValueError("`by` goes with `better_than`")
        return self


class AnswerSampling(Sampling):
    """Sampling settings of one answer that is measured."""

    max_new_tokens: Count = 256
    """Tokens after which an answer is cut."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0 takes the likeliest token; more divides the logits that tokens are drawn by."""

    @field_validator("temperature")
    @classmethod
    def _as_engines_take_it(cls, value: float) -> float:
        if 0 < value < LEAST_TEMPERATURE:
            raise ValueError(f"vLLM samples at no lower one than {LEAST_TEMPERATURE}; allowed: 0, or from there to 2")
        return value


class Answering(Engines):
    """The pool of vLLM engines that answers prompts, and how."""

    samples_per_prompt: Count = 1
    """Answers to each prompt; a row's figure is their mean."""
    max_prompt_tokens: Count = 1024
    """Longer prompts are malformed rows."""
    sampling: AnswerSampling = AnswerSampling()
    """Sampling of answers."""

    @model_validator(mode="after")
    def _differ(self) -> "Answering":
        if self.samples_per_prompt > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples_per_prompt {self.samples_per_prompt} with sampling.temperature 0, at which all answers to a "
                f"prompt are the same; allowed: 1, or a temperature of at least {LEAST_TEMPERATURE}"
            )
        return self


class Compute(Closed):
    """Passes over rows that are not generated."""

    batch: RowLimits = RowLimits()
    """Length of rows, and size of micro-batches."""
    workers: NoEffect[Workers] = Workers()
    """Ray Train workers; each has a copy of the model."""


class Evaluation(StageBase):
    """Models measured on the same rows, with 95 % intervals, and gates that stop the graph.

    A gate that is not passed ends the run with exit code 1: no further stage starts, and the figures stay in the
    stage's folder. With a changed gate the same command judges them again.
    """

    runner = "triptych.stages.evaluation.stage:run"
    workers_field = "compute.workers"
    checker = "triptych.stages.evaluation.harness_tasks:check"

    kind: Literal["evaluation"]
    models: tuple[str, ...] = Field(min_length=1)
    """Models: stages, registered versions (`name@3`), or `base`; the first is what the others are compared with."""
    sets: dict[Name, EvaluationSet] = Field(min_length=1)
    """Sets of rows by name."""
    gate: NoEffect[tuple[FigureGate, ...]] = ()
    """Limits that all must hold for the graph to go on."""
    compute: Compute = Compute()
    """Length of rows, size of micro-batches, and workers."""
    rollout: Answering = Answering()
    """Engines that answer prompts, for measures of generated answers."""

    @property
    def output(self) -> Output:
        return "evaluation"

    @property
    def workers(self) -> Workers:
        """The Ray Train group that computes the figures."""
        return self.compute.workers

    @property
    def engines(self) -> Engines | None:
        return self.rollout if any(one.measure.generates for one in self.sets.values()) else None

    def measuring(self) -> MeasuringShape:
        """Amounts of passes, and of answers where engines write them."""
        batch, asked = self.compute.batch, self.rollout
        most = asked.sampling.max_new_tokens
        generated = [one.measure.generates for one in self.sets.values()]
        read = 0 if all(generated) else batch.max_length
        written = asked.max_prompt_tokens + most if any(generated) else 0
        field = "compute.batch.max_length" if read >= written else "rollout.max_prompt_tokens + sampling.max_new_tokens"
        longest = max(read, written)
        rows = self.workers.count * max(1, 2 * batch.micro_tokens // longest)
        sampling = SamplingShape(rows, asked.samples_per_prompt, asked.max_prompt_tokens, most, 1, 1)
        share = sum(generated) / len(generated)
        return MeasuringShape(batch.micro_tokens, longest, field, rows, share, sampling if share else None)

    def splits(self) -> dict[str, Source]:
        """The rows of each set that has `data`."""
        return {name: one.data for name, one in self.sets.items() if one.data is not None}

    def split_field(self, split: str) -> Path:
        return ("sets", split, "data")

    def rows_of(self, split: str) -> str | None:
        return self.sets[split].measure.rows

    def longest_prompt(self, split: str) -> int | None:
        return self.rollout.max_prompt_tokens if self.sets[split].measure.generates else None

    def passes_over(self) -> tuple[Source | None, ...]:
        """The rows of all sets."""
        return tuple(one.data for one in self.sets.values())

    def steps(self, rows: int) -> int:
        """Micro-batches of all models."""
        return len(self.models) * -(-rows // self.measuring().rows_at_once)

    def references(self) -> tuple[Reference, ...]:
        """Data, models and judges."""
        read: tuple[Output, ...] = ("classifier",) if self.reads_classes else ("policy", "model")
        models = (Reference(("models", i), ref, read) for i, ref in enumerate(self.models) if ref != BASE)
        judges = (
            Reference(("sets", name, "measure", "reward"), one.measure.judged_by, ("reward_model",))
            for name, one in self.sets.items()
            if one.measure.judged_by is not None
        )
        return (*super().references(), *models, *judges)

    @property
    def reads_classes(self) -> bool:
        """True if its models are classifiers."""
        return all(one.measure.reads_classes for one in self.sets.values())

    def roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """The adapters that it measures, and the judges, all frozen; whole models have no role on the base."""
        head = HeadSpec(2, bias=False) if self.reads_classes else None
        name = CLASSIFIER if self.reads_classes else None
        adapters = [ref for ref in self.models if ref != BASE and not _is_whole(stages, ref)]
        found = [RoleSpec(name or ref, method_of(stages, ref), None, head=head, logits=not head) for ref in adapters]
        judges = dict.fromkeys(one.measure.judged_by for one in self.sets.values() if one.measure.judged_by)
        for ref in filter(None, judges):
            members = len(stages[ref].roles(stages)) if ref in stages else 1
            found.append(RoleSpec(REWARD, method_of(stages, ref), None, head=HeadSpec(1, bias=True), copies=members))
        return tuple(found)

    def faults(self, stages: Mapping[str, StageBase]) -> Iterator[Fault]:
        """Models that a measure or engines cannot read, gates on what is not measured, workers that shard."""
        yield from self._model_faults(stages)
        if self.engines is not None:
            yield from self._engine_faults(stages)
        for number, gate in enumerate(self.gate):
            yield from self._gate_faults(("gate", number), gate)
        if self.workers.strategy not in STRATEGIES:
            yield Fault(
                ("compute", "workers", "strategy"),
                f"{self.workers.strategy}, and each worker of an evaluation has a copy of the model; "
                f"allowed: {', '.join(STRATEGIES)}",
            )
        if self.workers.min_count is not None:
            yield Fault(("compute", "workers", "min_count"), "an evaluation is not elastic; allowed: no min_count")

    def _model_faults(self, stages: Mapping[str, StageBase]) -> Iterator[Fault]:
        classes = [name for name, one in self.sets.items() if one.measure.reads_classes]
        if classes and not self.reads_classes:
            yield Fault(
                ("sets", classes[0], "measure", "name"),
                "classification measures classifiers, and other sets of this stage models that write text; "
                "allowed: two stages of kind evaluation",
            )
        for i, ref in enumerate(self.models):
            if ref in self.models[:i]:
                yield Fault(("models", i), f"`{ref}` is given twice; allowed: each model once")
            if ref == BASE and ref in stages:
                yield Fault(("models", i), f"`{BASE}` is the base model, and a stage's name; allowed: rename the stage")
            if ref == BASE and self.reads_classes:
                yield Fault(("models", i), f"`{BASE}` has no head of classes; allowed: classifiers")
            if self.reads_classes and ref in stages and stages[ref].rows_of("train") != "texts":
                yield Fault(
                    ("models", i),
                    f"`{ref}` is of kind {stages[ref].kind}, and its head names no class of a text; "
                    "allowed: stages of kind classification",
                )

    def _engine_faults(self, stages: Mapping[str, StageBase]) -> Iterator[Fault]:
        for name, one in self.sets.items():
            for place, k in enumerate(one.measure.pass_at if isinstance(one.measure, VerifierMeasure) else ()):
                yield from pass_at_faults(
                    ("sets", name, "measure", "pass_at", place), k, self.rollout.samples_per_prompt
                )
        for i, ref in enumerate(self.models):
            if ref == BASE or ref not in stages:
                continue
            method = stages[ref].own_method or stages[ref].output_method(stages)
            if not _is_whole(stages, ref) and (reason := as_policy(method)):
                yield Fault(("models", i), f"`{ref}`: {reason}")
            elif self.rollout.sync == "adapter" and not is_lora(method):
                yield Fault(
                    ("rollout", "sync"),
                    f"adapter, and engines run no {names_of(method)} beside the weights; allowed: auto, merged",
                )

    def _gate_faults(self, path: Path, gate: FigureGate) -> Iterator[Fault]:
        yield from _unknown((*path, "set"), gate.set, tuple(self.sets))
        for field, model in (("model", gate.model), ("better_than", gate.better_than)):
            if model is not None:
                yield from _unknown((*path, field), model, self.models)
        if gate.better_than == gate.model:
            yield Fault((*path, "better_than"), f"`{gate.model}` is the model itself; allowed: another")
        if gate.set not in self.sets:
            return
        figures: dict[str, Better] = self.sets[gate.set].measure.figures()
        if gate.metric is not None and figures:
            yield from _unknown((*path, "metric"), gate.metric, tuple(figures))
        if gate.metric == "wins" and (gate.better_than or gate.model == self.models[0]):
            yield Fault(
                (*path, "metric"),
                f"wins are against the first model, {self.models[0]}; allowed: another model, with at_least",
            )


def _is_whole(stages: Mapping[str, StageBase], ref: str) -> bool:
    return ref in stages and stages[ref].output == "model"


def _unknown(path: Path, word: str, known: tuple[str, ...]) -> Iterator[Fault]:
    if word not in known:
        yield Fault(path, f"`{word}` is none of this stage{did_you_mean(word, known)}; allowed: {', '.join(known)}")
