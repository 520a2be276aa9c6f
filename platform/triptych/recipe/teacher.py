"""The teacher of a distillation, where it is a model of its own, and what it is refused with."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from triptych.recipe.base import Closed, Count, NoEffect
from triptych.recipe.errors import Fault
from triptych.recipe.model import Dtype, Model
from triptych.recipe.rollout import Engines

if TYPE_CHECKING:
    from triptych.recipe.rl import Rl

WholeDivergence = Literal["reverse_kl", "forward_kl", "jsd"]
"""Divergences over the whole vocabulary; see `objectives/distillation.py`."""


class TeacherEngines(Engines):
    """The pool of vLLM engines that runs a teacher; its weights never change, so `sync` stays `auto`."""

    engines: Count = 1
    """Engines in the pool, each of which judges its share of the answers."""


class TeacherModel(Closed):
    """A model with the base's vocabulary, usually a larger one, that engines of its own run without training it."""

    base: str = Field(min_length=1)
    """A built-in name, a Hugging Face id, or a local folder, as of `model.base`."""
    revision: str | None = None
    """Commit or tag of a Hugging Face id."""
    dtype: Dtype = "bfloat16"
    """Precision of its weights and of the computation."""
    engines: NoEffect[TeacherEngines] = TeacherEngines()
    """The engines that run it beside those of `rollout`."""

    @property
    def model(self) -> Model:
        """The model as others in a recipe are named."""
        return Model(base=self.base, revision=self.revision, dtype=self.dtype)


def teacher_faults(stage: "Rl") -> Iterator[Fault]:
    """Fields under which the engines of a teacher would judge other distributions than are sampled from."""
    if stage.algorithm.teaching_model is None:
        return
    if stage.algorithm.teaching_model.engines.sync != "auto":
        yield Fault(
            ("algorithm", "teacher", "engines", "sync"),
            f"{stage.algorithm.teaching_model.engines.sync}, and a teacher's weights never change; allowed: auto",
        )
    settings = {"rollout.sampling": stage.rollout.sampling} | (
        {"evaluation": stage.evaluation} if stage.data.heldout is not None else {}
    )
    for field, sampling in settings.items():
        if sampling.temperature != 1:
            yield Fault(
                (*field.split("."), "temperature"),
                f"{sampling.temperature:g}, and engines judge the tokens of a prompt at temperature 1 alone; allowed: "
                "1, or a teacher that is an adapter on the same base",
            )
            return
