"""Adapters registered, served, merged, continued and exported by the product's commands, each beside plain peft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.support.adapter_cases import CASES, AdapterCase, save_adapter
from tests.support.lora_engine import EngineJob, ask
from triptych.cli import app
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.models.vllm_lora import unserved_module
from triptych.registry import Registry
from triptych.serve.capabilities import Capabilities
from triptych.stages.stored_adapter import StoredAdapter

USES = ("served", "merged", "continued", "exported")
ROWS = [torch.randint(5, 300, (count,), generator=torch.Generator().manual_seed(count)).tolist() for count in (9, 23)]
"""Token ids that every use is given."""
Found = float | str
"""Largest difference from plain peft's log-probabilities, in nats; or why there is none."""


@dataclass
class Tried:
    """What came of registering an adapter, and of each of its uses."""

    refused: str | None = None
    """The message, where it was not registered."""
    converted: bool = False
    """It is kept as the plain LoRA that computes the same."""
    effect: float = 0.0
    """Largest difference of plain peft with the adapter from the base alone."""
    uses: dict[str, Found] = field(default_factory=dict)


class AdapterMatrix:
    """A registry in a folder, and what plain peft computes of the adapters in it."""

    def __init__(self, folder: Path, bases: Mapping[str, Path]) -> None:
        self._folder, self._bases = folder, bases
        self._registry = f"sqlite:///{folder}/registry.db"
        self._expected: dict[str, list[Tensor]] = {}
        self.tried: dict[str, Tried] = {}

    def register(self, name: str) -> None:
        """Save the case by peft, and register it; computes what it should give."""
        case, saved = CASES[name], self._folder / "saved" / _slug(name)
        save_adapter(case, self._bases[case.base], saved)
        tried = self.tried[name] = Tried()
        try:
            said = self._command("register", _slug(name), saved, "--base", self._bases[case.base])
            tried.converted = "is kept as the plain LoRA that computes the same" in said
        except UserError as error:
            tried.refused = str(error)
            return
        plain = self._plain(case)
        alone = [_logprobs(plain, row) for row in ROWS]
        self._expected[name] = _by(PeftModel.from_pretrained(plain, str(saved)))
        tried.effect = _largest(self._expected[name], alone)

    def use(self, name: str, use: str) -> None:
        """Try a use that needs no engine."""
        try:
            found = {"merged": self._merged, "continued": self._continued, "exported": self._exported}[use](name)
            self.tried[name].uses[use] = _largest(found, self._expected[name])
        except UserError as error:
            self.tried[name].uses[use] = str(error)

    def serve(self, names: Sequence[str], base: str) -> None:
        """Try all adapters of a base in one vLLM engine, in one mixed batch."""
        known = Registry(self._registry)
        served: dict[str, str] = {}
        for name in names:
            version = known.get(_slug(name))
            if reason := Capabilities(16).why_not(version.kind, known.facts(version.ref)):
                self.tried[name].uses["served"] = reason
            else:
                served[name] = str(known.fetch(version.ref))
        mixed = [(name, row) for row in ROWS for name in served]
        found = ask(EngineJob(str(self._bases[base]), served, [mixed]), self._folder / f"{base}.json")
        loaded = [name for name in served if name not in found.unfit]
        scores = iter(map(torch.tensor, found.scores[0]))
        by_row = [{name: next(scores) for name in loaded} for _ in ROWS]
        for name in loaded:
            self.tried[name].uses["served"] = _largest([row[name] for row in by_row], self._expected[name])
        for name, message in found.unfit.items():
            self.tried[name].uses["served"] = unserved_module(message) or message

    def _merged(self, name: str) -> list[Tensor]:
        out = self._folder / "merged" / _slug(name)
        self._command("merge", _slug(name), out, "--dtype", "float32")
        return _by(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))

    def _continued(self, name: str) -> list[Tensor]:
        known = Registry(self._registry)
        method, weights = StoredAdapter(known.get(_slug(name)), "policy", to_go_on=True).adapter.to_go_on
        model = RoleModel(load_causal_lm(self._bases[CASES[name].base], torch.float32))
        model.add("policy", method, trainable=True, weights=weights)
        with torch.no_grad(), model.use("policy"):
            rows = [torch.tensor([row]) for row in ROWS]
            return [_chosen(model.logits(model.hidden(row, torch.ones_like(row))), row) for row in rows]

    def _exported(self, name: str) -> list[Tensor]:
        out = self._folder / "exported" / _slug(name)
        self._command("export", _slug(name), out)
        return _by(PeftModel.from_pretrained(self._plain(CASES[name]), str(out)))

    def _plain(self, case: AdapterCase) -> Any:
        return AutoModelForCausalLM.from_pretrained(self._bases[case.base], dtype=torch.float32)

    def _command(self, *words: object) -> str:
        """Run `triptych adapters` in this process; what it wrote to stderr."""
        given = ["adapters", *map(str, words), "--registry", self._registry]
        result = CliRunner().invoke(app, given)
        if result.exception is not None:
            raise result.exception
        return result.stderr.strip()


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


@torch.no_grad()
def _logprobs(model: Any, ids: Sequence[int]) -> Tensor:
    row = torch.tensor([ids])
    return _chosen(model.eval()(input_ids=row).logits, row)


def _chosen(logits: Tensor, row: Tensor) -> Tensor:
    """Log-probabilities [T - 1] of a row's tokens but the first, by the logits [1, V + T, vocabulary] of T of them."""
    logprobs = logits[0, -row.shape[1] : -1].log_softmax(-1)
    return logprobs.gather(1, row[0, 1:, None])[:, 0]


def _by(model: Any) -> list[Tensor]:
    return [_logprobs(model, row) for row in ROWS]


def _largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
