"""Model cards: what an exported adapter or model is, how it is loaded, what it was made from, and how it measured."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from triptych.models.peft_files import ADAPTER_CONFIG, FACTS, HEAD_WEIGHTS
from triptych.registry.records import AdapterVersion

CARD, BESIDE = "README.md", "TRIPTYCH.md"
"""File of the card, and of one beside a README.md that was there before."""
_KINDS = {
    "policy": "An adapter that generates text",
    "reward_model": "A reward model: an adapter and a scalar head",
    "classifier": "A classifier: an adapter and a head of classes",
    "model": "A whole model",
    "whole_reward": "A reward model: a whole model with a scalar head",
    "dataset": "Rows of a data set",
}
_PEFT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "THIS FOLDER")
"""
_MODEL = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")
"""
_REWARD = """\
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("THIS FOLDER")
"""


@dataclass(frozen=True)
class EvaluationResults:
    """What one evaluation measured of a version."""

    evaluation: str
    """The evaluation's ref."""
    results: Sequence[Mapping[str, Any]]
    """Entries of the hub's `model-index`, one a set."""
    table: str
    """The figures in Markdown."""


@dataclass(frozen=True)
class Exported:
    """A version that was exported to a folder, as it is described there."""

    version: AdapterVersion
    ancestors: Sequence[AdapterVersion]
    """The versions that it was made from, nearest first."""
    method: str
    """Names of the methods that were trained."""
    base: str | None
    """The base's id on the hub, or its folder; None where it has a name on this machine alone."""
    evaluations: Sequence[EvaluationResults] = ()
    """What evaluations measured of it."""
    merged: str | None = None
    """Precision and losses of the merge, where the folder is the base with the adapter in its weights."""
    whole_reward: bool = False
    """True of a reward model that is a whole model."""

    @property
    def whole(self) -> bool:
        return self.form in ("model", "whole_reward")

    @property
    def form(self) -> str:
        """Key of what is said of it."""
        if self.whole_reward:
            return "whole_reward"
        return "model" if self.merged is not None else self.version.kind


def write_card(folder: Path, found: Exported) -> None:
    """Write the card of what was exported to a folder."""
    version, lineage = found.version, found.version.lineage
    what = f"{_KINDS[found.form]}, trained by {found.method} on {found.base or version.base}"
    text = "\n".join(
        [
            _front(found),
            f"# {version.ref}\n",
            f"{what}, merged: {found.merged}.\n" if found.merged else f"{what}.\n",
            f"## How to load it\n\n{_loading(folder, found)}",
            "## What it was made from\n",
            _table(("", ""), _origin(version)),
            _table(("made from", "sha256"), [(one.ref, one.sha256) for one in found.ancestors]),
            _table(("data", "sha256 of the rows"), lineage.get("data") or {}),
            _table(("data set of the hub", "commit"), lineage.get("hub") or {}),
            "## Measured on held-out rows\n",
            _table(("metric", "value"), [(name, f"{value:.6g}") for name, value in sorted(_numbers(version))]),
            *(f"## Measured by {one.evaluation}\n\n{one.table}" for one in found.evaluations),
        ]
    )
    place = folder / (BESIDE if (folder / CARD).exists() else CARD)
    place.write_text(text.rstrip() + "\n", encoding="utf-8")


def trained_by(folder: Path) -> str:
    """Name of the method that was trained, or of each part, by an adapter's files."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8")) if (folder / FACTS).is_file() else {}
    method = facts.get("trained") or facts.get("method") or []
    parts = method if isinstance(method, list) else [method]
    return " + ".join(str(part.get("name")) for part in parts) or "a method that its files do not name"


def _front(found: Exported) -> str:
    """The part that the hub reads."""
    facts: dict[str, Any] = {
        "library_name": "transformers" if found.whole else "peft",
        "tags": ["triptych", found.version.kind],
    }
    if found.base is not None and not Path(found.base).is_absolute():
        facts |= {"base_model": found.base, "base_model_relation": "finetune" if found.whole else "adapter"}
    if results := [result for one in found.evaluations for result in one.results]:
        facts["model-index"] = [{"name": found.version.ref, "results": results}]
    return f"---\n{yaml.safe_dump(facts, sort_keys=True)}---\n"


def _loading(folder: Path, found: Exported) -> str:
    if found.whole:
        return f"```python\n{_REWARD if found.whole_reward else _MODEL}```\n"
    again = f"`triptych adapters register {found.version.name} FOLDER` adds this folder to another registry"
    if not (folder / ADAPTER_CONFIG).is_file():
        return f"Neither peft nor transformers has a format for it: {again}.\n"
    head = (folder / HEAD_WEIGHTS).is_file()
    reads = f" `{HEAD_WEIGHTS}` is its head, a linear layer on the last hidden states." if head else ""
    return f"```python\n{_PEFT.format(base=found.base or found.version.base)}```\n\n{again}.{reads}\n"


def _origin(version: AdapterVersion) -> list[tuple[str, str]]:
    lineage = version.lineage
    named = {
        "base": version.base,
        "fingerprint of the base": version.base_fingerprint,
        "kind of stage": lineage.get("stage_kind"),
        "digest of the recipe": lineage.get("recipe"),
        "seed": lineage.get("seed"),
        "version of Triptych": lineage.get("code"),
        "registered": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
        "sha256": version.sha256,
    }
    return [(name, str(value)) for name, value in named.items() if value is not None]


def _numbers(version: AdapterVersion) -> Iterable[tuple[str, float]]:
    return ((name, value) for name, value in version.metrics.items() if isinstance(value, int | float))


def _table(titles: tuple[str, str], rows: Mapping[str, Any] | Sequence[tuple[str, str]]) -> str:
    """A table in Markdown; nothing of no rows."""
    found = list(rows.items() if isinstance(rows, Mapping) else rows)
    if not found:
        return ""
    lines = [titles, ("---", "---"), *((_cell(name), _cell(value)) for name, value in found)]
    return "".join(f"| {one} | {other} |\n" for one, other in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
