"""The description that a stage kind gives of itself: references, roles, shape of its work, metrics, output.

Everything that plans, sweeps or orders stages reads these; nothing outside the table of kinds asks for a kind by name.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from triptych.artifact_kinds import ArtifactKind
from triptych.recipe.base import Closed, Name, NoEffect
from triptych.recipe.data import Data, Origin, Source
from triptych.recipe.matrix import Lora
from triptych.recipe.method import Method, trains_base
from triptych.recipe.spec import Path
from triptych.recipe.training import Optimizer, TrainingBase, Workers
from triptych.recipe.work_shape import MeasuringShape, WorkShape

if TYPE_CHECKING:
    from triptych.recipe.errors import Fault
    from triptych.recipe.rollout import EngineModel, Engines

Output = ArtifactKind | Literal["none"]
"""Result of a stage, by the kinds of artifacts in the registry; `none`: a stage that registers nothing."""

POLICY, REFERENCE, CRITIC, REWARD, CLASSIFIER = "policy", "reference", "critic", "reward", "classifier"
TEACHER, MEASURING = "teacher", "measuring"
"""Names of the roles that stages put on the base model."""

DEFAULT_METHOD = Lora()
"""Method assumed for a registered version: a recipe does not say by which one it was trained."""


@dataclass(frozen=True)
class Reference:
    """A field of a stage that names another stage's output, or a registered version."""

    field: Path
    """Path of the field below the stage."""
    ref: str
    """Name of a stage of the recipe, or `name@3`."""
    outputs: tuple[Output, ...]
    """Outputs that the field accepts."""
    versions: bool = True
    """True if the field accepts a registered version."""
    hint: str = ""
    """Advice on outputs that the field does not accept."""


@dataclass(frozen=True)
class Known:
    """Knowledge of an adapter that a field names: from the stage that makes it, or from its files."""

    ref: str
    """The stage, or `name@3`."""
    kind: str
    """Kind of the artifact."""
    method: Method | None
    """Method by which training can go on from it; None: known once it is there."""
    stage_kind: str | None = None
    """Kind of the stage that made it; None for an adapter from elsewhere."""
    labels: tuple[str, ...] = ()
    """Classes of a classifier, in the order of its head."""
    members: int = 1
    """Reward models of an ensemble."""


@dataclass(frozen=True)
class HeadSpec:
    """A linear head on the hidden states."""

    outputs: int
    bias: bool


@dataclass(frozen=True)
class RoleSpec:
    """A role that a stage puts on a model: an adapter on the base, or a whole model, perhaps with a head."""

    name: str
    method: Method
    optimizer: Optimizer | None
    """Optimizer of a trained role; None: the role is a frozen copy."""
    optimizer_field: Path = ()
    """Path of the optimizer below the stage."""
    head: HeadSpec | None = None
    logits: bool = False
    """True if its loss needs logits over the vocabulary."""
    copies: int = 1
    """Members of an ensemble that work as this one role."""
    updates: int = 1
    """Optimiser steps of a trained role for each one of the first."""
    learning: float = 1.0
    """Share of the stage's steps in which a trained role learns."""
    copied: bool = True
    """False for a frozen whole model that is the base itself, which others stand on too."""

    @property
    def trained(self) -> bool:
        return self.optimizer is not None

    @property
    def own_model(self) -> bool:
        """True if the role has a model for itself; else it stands on the base, which adapters share."""
        return trains_base(self.method) and (self.trained or self.copied)

    @property
    def model(self) -> str:
        """Name of the model that it stands on: the role's own, or empty for the base that is shared."""
        return self.name if self.own_model else ""


def member_roles(role: str, members: int) -> tuple[str, ...]:
    """Role names of an ensemble; the first member has the name of the whole."""
    return (role, *(f"{role}-{number}" for number in range(1, members)))


class StageBase(Closed):
    """Fields and properties that every kind of stage has."""

    runner: ClassVar[str]
    """Name of the function (stages) that runs a stage of the kind on the driver, as `module:function`."""

    workers_field: ClassVar[str] = "train.workers"
    """Field below the stage that sets its workers."""

    checker: ClassVar[str | None] = None
    """Name of a function (stages) of recipe and stage that refuses, before anything starts, what only an optional
    library knows, as `module:function`; None: there is nothing of that kind."""

    kind: str
    """Kind of the stage, which decides its other fields."""
    needs: NoEffect[tuple[str, ...]] = ()
    """Stages that must end first, beside those that a field of this stage names."""
    register_as: NoEffect[Name | None] = None
    """Name of the output in the registry; None: `<recipe>-<stage>`."""

    @property
    def output(self) -> Output:
        """Kind of the artifact that the stage registers."""
        return "none"

    @property
    def own_method(self) -> Method | None:
        """Method that the stage itself names; None: its roles start from other stages' adapters."""
        return None

    @property
    def inherited(self) -> tuple[str, ...]:
        """Fields that the recipe leaves out and another stage, or a registered version, gives."""
        return ()

    @property
    def asks_versions(self) -> bool:
        """True if what registered versions are decides on more than the recipe says."""
        return bool(self.inherited)

    def inheriting(self, known: Known) -> "StageBase":
        """The stage with what it inherits from an adapter that it names."""
        return self

    def leaves(self, name: str, stages: Mapping[str, "StageBase"]) -> Known | None:
        """Knowledge of the adapter that the stage (called `name`) registers, before it is there; None: it is none."""
        return None

    def refusal(self, field: Path, known: Known) -> "Fault | None":
        """Reason why a field cannot name this adapter although it is of a kind that the field accepts."""
        return None

    @property
    def workers(self) -> Workers | None:
        """The Ray Train group of the stage; None: it has no learner."""
        return None

    @property
    def engines(self) -> "Engines | None":
        """Engines that sample for the stage while it runs."""
        return None

    @property
    def engine_models(self) -> "tuple[EngineModel, ...]":
        """Models of their own that engines run while the stage does, beside `engines`."""
        return ()

    def measuring(self) -> MeasuringShape | None:
        """Amounts of passes without gradients, for a stage that has workers and trains nothing."""
        return None

    def splits(self) -> dict[str, Source]:
        """Tables of rows that the stage reads, by name."""
        return {}

    def split_field(self, split: str) -> Path:
        """Path of a table's fields below the stage."""
        return ("data", split)

    def rows_of(self, split: str) -> str | None:
        """Kind of a table's rows (data/sources.py, PARSERS); None: they are of no kind that is parsed there."""
        return None

    def row_labels(self) -> tuple[str, ...] | None:
        """Labels that rows may have; None: they have none, or any."""
        return None

    def longest_prompt(self, split: str) -> int | None:
        """Tokens of the longest prompt of a table that engines answer; None: they answer none of it."""
        return None

    def passes_over(self) -> tuple[Source | None, ...]:
        """Tables whose rows the steps of the stage are made of; None: one that cannot be counted beforehand."""
        return ()

    def steps(self, rows: int) -> int:
        """Steps of the whole stage on so many rows of `passes_over`."""
        return 0

    def references(self) -> tuple[Reference, ...]:
        """Fields that name another stage's output, `needs` apart: data that other stages make."""
        return tuple(
            Reference((*self.split_field(split), *place, "stage"), origin.stage, ("dataset",), versions=False)
            for split, source in self.splits().items()
            for place, origin in source.origins()
            if origin.stage is not None
        )

    def parents(self) -> tuple[str, ...]:
        """Names of the stages that this one reads from or waits for."""
        return tuple(one.ref for one in self.references() if "@" not in one.ref) + self.needs

    def faults(self, stages: Mapping[str, "StageBase"]) -> Iterator["Fault"]:
        """Combinations of the kind's own fields that cannot work; paths are below the stage."""
        yield from ()

    def shortfall(self, metrics: Mapping[str, float]) -> str | None:
        """Reason why a result with these held-out metrics may not be registered or used; None: it may."""
        return None

    def roles(self, stages: Mapping[str, "StageBase"]) -> tuple[RoleSpec, ...]:
        """Roles of the learner, a trained one first; `stages`: those of the recipe, by name. None without a learner."""
        return ()

    def output_method(self, stages: Mapping[str, "StageBase"]) -> Method:
        """Method of what the stage registers, as roles of other stages have it."""
        return DEFAULT_METHOD


class TrainedStage(StageBase):
    """A stage with a learner: a group of Ray Train workers that takes optimiser steps."""

    task: ClassVar[str]
    """Name of the kind's `Task` (train/tasks), as `module:object`: its objectives and full micro-batches."""
    rows: ClassVar[str | None] = None
    """Kind of its rows (data/sources.py, PARSERS); None: its rows are of no kind that is parsed there."""
    largest_batch: ClassVar[str | None] = None
    """Name of the function (stages) of recipe, stage, training rows and tokenizer that finds the largest micro-batch
    of the rows, as `module:function`; None: a plan goes by the recipe alone."""
    whole_with_head: ClassVar[bool] = False
    """True if the kind saves a whole model together with the head that it trains."""

    data: Data
    """Rows that it learns from, and rows that it is measured on."""
    train: TrainingBase
    """Optimizer, batches, memory, workers, checkpoints and evaluations."""

    @property
    def workers(self) -> Workers:
        """The Ray Train group of the stage."""
        return self.train.workers

    @property
    def shards_by_default(self) -> bool:
        """True if `strategy: auto` may shard the base model."""
        return True

    def splits(self) -> dict[str, Source]:
        """Training and held-out rows."""
        return self.data.splits()

    def rows_of(self, split: str) -> str | None:
        return self.rows

    def with_sources(self, change: Callable[[Origin], dict[str, Any]]) -> Self:
        """The stage with some fields of each table that it reads changed."""
        train, heldout = self.data.train.changed(change), self.data.heldout
        data = Data(train=train, heldout=heldout.changed(change) if heldout else None)
        return self.model_copy(update={"data": data})

    def passes_over(self) -> tuple[Source | None, ...]:
        """The training rows."""
        return (self.data.train,)

    def steps(self, rows: int) -> int:
        """Optimiser steps of the whole stage on so many training rows."""
        return self.train.total_steps(rows)

    def trained_roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """Roles that are updated."""
        return tuple(role for role in self.roles(stages) if role.trained)

    @abstractmethod
    def shape(self) -> WorkShape:
        """Amounts of an optimiser step."""

    def reports(self) -> tuple[str, ...]:
        """Metrics on held-out rows, without `heldout_`, that a sweep can optimise."""
        return ()

    def logs(self) -> tuple[str, ...]:
        """Metrics of its steps that a sweep can optimise: what is learned from, and what a step costs."""
        return ("loss", "peak_memory_bytes", "step_seconds", "tokens_per_second")


def method_of(stages: Mapping[str, StageBase], ref: str) -> Method:
    """Method of what `ref` names: a stage's output, or the default for a registered version."""
    stage = stages.get(ref)
    return DEFAULT_METHOD if stage is None else stage.output_method(stages)


def adapter_method(method: Method) -> Method:
    """The method itself, or the default where it trains the base and leaves no adapter."""
    return DEFAULT_METHOD if trains_base(method) else method
