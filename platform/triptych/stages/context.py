"""What every stage is given, and how its folder remembers what it was made from."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import ValidationError

from triptych import storage
from triptych.data.table import Table, write_table
from triptych.errors import UserError
from triptych.models.base import resolve_base
from triptych.models.identity import difference
from triptych.observe.progress import Progress
from triptych.recipe import KINDS, Recipe, StageBase, with_effect
from triptych.recipe.changes import differences
from triptych.recipe.upgrade import is_old, upgraded_stage
from triptych.recipe.work_shape import MicroBatch
from triptych.registry import Registry

if TYPE_CHECKING:
    from triptych.registry import AdapterVersion
    from triptych.stages.stored_adapter import StoredAdapter
    from triptych.stages.whole_model import WholeModel

StageT = TypeVar("StageT", bound=StageBase)
_NONE: Mapping[str, str] = MappingProxyType({})


class Monitor(Protocol):
    """Follows a stage from outside, as a sweep does. Picklable."""

    def wants(self, step: int) -> bool:
        """Whether there shall be an evaluation at this step, besides those of the recipe."""

    def evaluated(self, step: int) -> None:
        """An evaluation within the stage, its row and its checkpoint committed; returns when the stage may go on."""


class Trainer(Protocol):
    """Trains stages elsewhere than on a Ray Train group of their own. Picklable."""

    def train(self, ctx: "StageContext[Any]", learn: Callable[..., Any]) -> None:
        """Run a stage's `learn` (stages/supervised) to its end; as `launch` raises what it raised."""


@dataclass(frozen=True)
class StageContext(Generic[StageT]):
    """A stage of a run. Picklable: workers get the same."""

    recipe: Recipe
    name: str
    stage: StageT
    run: str
    """URL of the run's folder."""
    base_dir: Path
    """Hugging Face folder of the base, on this node."""
    base_fingerprint: str
    registry_url: str
    artifacts: str
    progress: Progress
    monitor: Monitor | None = None
    forked_at: int | None = None
    """The step of another stage's checkpoint that this one begins from; it is measured there first."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What the lineage says beside the inputs: the sweep that chose them."""
    trainer: Trainer | None = None
    """Who trains the stage in place of a Ray Train group of its own."""
    start: "StoredAdapter | WholeModel | None" = None
    """Adapter that the stage's method, and its head, go on from, or a whole model; None: they are new, on the base."""
    on_data: "Callable[[StageContext[Any], MicroBatch], None] | None" = None
    """Called on the driver once the stage's data are read, with the largest micro-batch that they make."""

    def __getstate__(self) -> dict[str, Any]:
        """Workers are not the driver: theirs has nobody to tell."""
        return self.__dict__ | {"on_data": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Nodes have folders of their own: one that does not have the base yet gets it."""
        if not state["base_dir"].is_dir():
            state = state | {"base_dir": resolve_base(state["recipe"].model)}
        self.__dict__.update(state)

    def tell_of_data(self, batch: MicroBatch) -> None:
        """Call `on_data`, if there is one."""
        if self.on_data is not None:
            self.on_data(self, batch)

    @property
    def folder(self) -> str:
        return storage.join(self.run, "stages", self.name)

    @property
    def checkpoints(self) -> str:
        return storage.join(self.folder, "checkpoints")

    @property
    def artifact(self) -> str:
        return storage.join(self.folder, "artifact")

    @property
    def adapter_name(self) -> str:
        return self.stage.register_as or f"{self.recipe.name}-{self.name}"

    @property
    def start_version(self) -> "AdapterVersion | None":
        """The version of `start`."""
        return None if self.start is None else self.start.version

    def registry(self) -> Registry:
        return Registry(self.registry_url, self.artifacts)

    def about(self) -> dict[str, Any]:
        """What an adapter's folder says of its origin."""
        digest = storage.digest_of(self.recipe.model_dump(mode="json"))
        base = {"base": self.recipe.model.base, "base_fingerprint": self.base_fingerprint}
        quantization = self.recipe.model.quantization
        template = self.recipe.model.chat_template
        changed: dict[str, Any] = {"quantization": quantization} if quantization else {}
        changed |= {"chat_template": template} if template else {}
        changed |= {"hub_base": found} if (found := _on_hub(self.recipe.model.base, self.base_dir)) else {}
        return base | changed | {"recipe": digest, "stage_kind": self.stage.kind}


def _on_hub(base: str, folder: Path) -> dict[str, str] | None:
    """Id and commit of a base that lies in the hub's cache; None of any other."""
    if folder.parent.name != "snapshots" or folder.parents[1].name != f"models--{base.replace('/', '--')}":
        return None
    return {"id": base, "revision": folder.name}


def begin(
    ctx: StageContext[Any], tables: Mapping[str, Table], parents: Mapping[str, str], models: Mapping[str, str] = _NONE
) -> dict[str, Any]:
    """`remember`, and write the stage's tables."""
    inputs = remember(ctx, {split: table.digest for split, table in tables.items()}, parents, models)
    for split, table in tables.items():
        write_table(storage.join(ctx.folder, "data", split), table)
    return inputs


def remember(
    ctx: StageContext[Any], digests: Mapping[str, str], parents: Mapping[str, str], models: Mapping[str, str] = _NONE
) -> dict[str, Any]:
    """Write down what the stage is made from: its fields, the digests of its rows (by split) and of its parents.

    `models`: fingerprints of models of their own, by field.

    Raises:
        UserError: its folder was begun from something else; the differing fields are named.
    """
    inputs = {
        "stage": _without(with_effect(ctx.stage), _chosen(ctx)),
        "model": ctx.recipe.model.model_dump(mode="json"),
        "base": ctx.base_fingerprint,
        "seed": ctx.recipe.seed,
        "data": dict(digests),
        "parents": dict(parents),
        **({"models": dict(models)} if models else {}),
    }
    _write_or_compare(storage.join(ctx.folder, "state.json"), inputs, _chosen(ctx))
    return inputs


def _chosen(ctx: StageContext[Any]) -> set[str]:
    """Names of the fields that the recipe leaves to be chosen."""
    trained = ctx.recipe.trained.get(ctx.name)
    return set() if trained is None else set(trained.train.auto)


def _write_or_compare(url: str, inputs: dict[str, Any], chosen: set[str]) -> None:
    """Write the inputs, or compare them with those that are there; fields in `chosen` may differ."""
    if not storage.exists(url):
        storage.write_bytes(url, json.dumps(inputs, indent=2).encode())
        return
    before = json.loads(storage.read_bytes(url))
    if difference(before["base"], inputs["base"]) is None:
        before["base"] = inputs["base"]  # an earlier version wrote down the weights alone
    before["stage"] = _without(_of_today(before["stage"]), chosen)
    listed = differences(before, json.loads(json.dumps(inputs)))
    if listed:
        raise UserError(
            f"{url} was begun from another recipe or other data ({listed}); "
            "give the run another `name`, or remove the folder of that file to do the stage again"
        )


def _of_today(stage: dict[str, Any]) -> dict[str, Any]:
    """Fields that an earlier version wrote down, as this one does: those that it did not know have their defaults.

    What this version cannot read stays as it is, and differs.
    """
    fields = upgraded_stage(stage) if is_old(stage) else stage
    try:
        return with_effect(KINDS[fields["kind"]].model_validate_json(json.dumps(fields)))
    except (KeyError, ValidationError):
        return fields


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return value
