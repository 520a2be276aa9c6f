"""The table of families of causal models: what was found when each was tried. families.json holds it.

Written by `python -m tests.support.family_table`, which tries them; `triptych models` and docs/reference print it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.errors import UserError
from triptych.models.sizes import read_config
from triptych.recipe.model import Model

if TYPE_CHECKING:
    from triptych.recipe import Engines

TABLE = "families.json"
EQUAL = "equal"
"""Said of an engine whose greedy answers are those of transformers."""
DIFFERS = "differs"
"""Begins what is said of an engine that computes something else."""


@dataclass(frozen=True)
class TriedFamily:
    """Results of a family's tiny random model."""

    padded_because: str | None
    """The reason why its rows are not laid end to end; None: they are."""
    refused_methods: tuple[str, ...]
    """Methods that refuse it."""
    states: float
    """Largest difference of hidden states and logits from transformers, each row alone, in float64."""
    gradients: float
    """Largest difference of LoRA's gradients, as a share of the largest of them."""
    engine: str
    """`EQUAL`, for the base and with a LoRA merged into it; else what vLLM's CPU engine says, or where it differs."""
    adapter: str
    """The same for an engine that applies a LoRA beside the base's weights."""
    plan: str
    """The message of the plan, empty where it knows the model's sizes."""

    @property
    def trained(self) -> str:
        """`packed` or `padded`."""
        return "padded" if self.padded_because else "packed"


def check_sampled(config: Mapping[str, Any], engines: "Engines", field: str) -> None:
    """Refuse a base that vLLM's CPU engine runs otherwise than transformers; `config` is that of its config.json.

    `field`: of the engines.

    Raises:
        UserError: training and sampling would not be of one model, or engines cannot apply the adapters that they
            would get.
    """
    family = _tried(config)
    if family is None or engines.gpus:
        return
    if engines.sync == "adapter" and family.adapter != EQUAL:
        raise UserError(
            f"{field}.sync: adapter: vLLM's CPU engine applies no LoRA to {config['model_type']} ({family.adapter}); "
            "allowed: merged, auto"
        )
    if family.engine.startswith(DIFFERS):
        raise UserError(
            f"model.base: vLLM's CPU engine computes {config['model_type']} otherwise than transformers "
            f"({family.engine}); allowed: another family for stages that sample, see `triptych models`"
        )


def takes_adapters(folder: Path) -> bool:
    """True if vLLM's CPU engine was seen to apply LoRA to the family of the base in `folder` as it is trained."""
    config = folder / "config.json"
    found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    family = _tried(found)
    return family is not None and family.adapter == EQUAL


def packs_rows(model: Model) -> bool:
    """Whether rows are laid end to end: the recipe asks for it, and nothing in the family's layers hinders it."""
    family = _tried(read_config(model))
    return model.packing and (family is None or family.padded_because is None)


@cache
def tried_families() -> dict[str, TriedFamily]:
    """`model_type` -> what was found."""
    text = (resources.files("triptych.models") / TABLE).read_text(encoding="utf-8")
    return {name: _read(facts) for name, facts in json.loads(text).items()}


def _tried(config: Mapping[str, Any]) -> TriedFamily | None:
    """What was found of the family of a config.json; None: it was not tried."""
    return tried_families().get(str(config.get("model_type")))


def _read(facts: dict[str, Any]) -> TriedFamily:
    return TriedFamily(**facts | {"refused_methods": tuple(facts["refused_methods"])})
