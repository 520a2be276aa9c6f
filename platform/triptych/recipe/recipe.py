"""The whole recipe: a named graph of stages on one base model."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from triptych.recipe.amount import Amount
from triptych.recipe.base import Closed, Name
from triptych.recipe.kinds import Stage
from triptych.recipe.model import Model
from triptych.recipe.stage import StageBase, TrainedStage
from triptych.recipe.sweep import Sweep

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class Storage(Closed):
    """Places that a run writes to. Every value is a folder or an fsspec URL."""

    runs: str = "runs"
    """A run lives in `<runs>/<recipe name>`."""
    registry: str | None = None
    """SQLAlchemy URL of the registry; None: a SQLite file `registry.db` in `runs`."""
    artifacts: str | None = None
    """Folder or URL of registered artifacts; None: `<runs>/artifacts`."""


def inheriting(stages: Mapping[str, StageBase]) -> dict[str, StageBase]:
    """The stages with what they inherit from each other."""
    found = dict(stages)
    for _ in found:  # a chain is at most as long
        for name, stage in found.items():
            for reference in stage.references():
                parent = found.get(reference.ref)
                if parent is not None and (known := parent.leaves(reference.ref, found)) is not None:
                    found[name] = found[name].inheriting(known)
    return found


class Recipe(Closed):
    """A whole recipe: everything that a run depends on."""

    name: Name
    """Name of the run, and the beginning of its adapters' names."""
    seed: int = Field(0, ge=0)
    """Start of every random stream of the run."""
    machine: str = "local"
    """Hardware that `plan` assumes: `local`, or a preset such as `8xh100-80`."""
    memory: Amount | None = None
    """Limit of each device's memory, such as `8GB`; None: all of it. `plan` keeps to it."""
    model: Model
    """The base model of all stages."""
    storage: Storage = Storage()
    """Places of runs, registry and artifacts."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that get the metrics too; `mlflow` and `wandb` are extras of the package."""
    stages: Annotated[dict[Name, Stage], AfterValidator(inheriting)] = Field(min_length=1)
    """Stages by name; a stage that names others waits for them."""
    sweep: Sweep | None = None
    """Trials of one stage over a space of this recipe's keys, for `triptych sweep`."""

    @model_validator(mode="after")
    def _each_tracker_once(self) -> "Recipe":
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers: each once, not {', '.join(self.trackers)}")
        return self

    @property
    def trained(self) -> dict[str, TrainedStage]:
        """The stages that have a learner."""
        return {name: stage for name, stage in self.stages.items() if isinstance(stage, TrainedStage)}
