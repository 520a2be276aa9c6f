"""The table of families: `python -m tests.support.family_table` writes the package's families.json, and its page.

Each row is measured with a tiny random model of the family: with a LoRA, packed where it can be and padded, against
transformers' own attention, each row alone; by every method; and in the vLLM engine.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.models.test_families import LORA, ROLE, disturb, expected, largest, lone, ours
from tests.support.families import FAMILIES, tiny
from tests.support.family_engine import verdicts
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.methods import METHODS
from triptych.models.families import EQUAL, TABLE, TriedFamily
from triptych.models.meta_sizes import sizes_on_meta

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs/reference/families.md"
FACTS = _ROOT / "platform/triptych/models" / TABLE
_SETTINGS: dict[str, dict[str, Any]] = {
    "vblora": {"vector_length": 32},
    "shira": {"r": 4},
    "c3a": {"block_size": 16},
    "freeze": {"layers": 1},
} | {name: {"init": "random"} for name in ("prefix_tuning", "p_tuning_v2", "gated_prefix")}
"""Settings for sizes as small as these, and for want of a tokenizer."""
_HEAD = """\
# Families of models

Any causal language model that transformers loads is trained, packed where its tokens meet in attention alone, else
padded; what attention is given and nobody computes is refused by name. These were checked with tiny random models: the
largest difference of hidden states and logits, and of LoRA's gradients beside the largest of them, from transformers'
own attention with each row alone, in float64. Families that compute norms, routers or states in float32 differ by that.

*Refused methods* do not fit the family, with their default targets, or the sizes of its layers; `bitfit` needs biases.
Prefixes (prefix tuning, P-tuning v2) need keys and values in every block. LoRA on `all-linear` reaches the experts of
mixtures, as peft's `target_parameters` do: without dropout, with `init` default or gaussian, not under zero3.
`experts: false` leaves them as they are, as all other methods do, DoRA among them. vLLM's CPU engine has no LoRA for
experts: rollouts sample from merged weights, and such an adapter is served once it is merged. LoRA leaves out routers,
and layers whose weights their family reads without calling them.

*engine*: 32 greedy tokens of vLLM's CPU engine after prompts of 1 to 100 tokens are those of transformers in float32
(equal), for the base and with a LoRA merged into it; *with LoRA*: the same with the LoRA beside the base's weights.
Otherwise vLLM's own message, or where it differs. A choice between two tokens whose logits differ by less than a
ten-thousandth of the largest may fall to either. `triptych models` prints this table.

Written by `python -m tests.support.family_table`.

| family | trained | because | refused methods | states and logits | gradients | engine | with LoRA | planned |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def tried(name: str, said: dict[str, str]) -> TriedFamily:
    """All that is found of a family; `said`: verdicts of its engine by the way of weight sync."""
    off: list[float] = []
    slopes: list[float] = []
    for packing in (True, False):
        plain, model = lone(name, torch.float64, packing=packing)
        torch.manual_seed(0)
        model.add(ROLE, LORA, trainable=True)
        disturb(model)
        found, wanted = ours(model, "left"), expected(plain, model)
        pairs = zip([*found[0], *found[1]], [*wanted[0], *wanted[1]], strict=True)
        off += [largest(got - right) for got, right in pairs]
        most = max(map(largest, wanted[2].values()))
        slopes += [largest(found[2][key] - right) / most for key, right in wanted[2].items()]
    return TriedFamily(
        padded_because=model.padded_because,
        refused_methods=tuple(refused_methods(name)),
        states=float(f"{max(off):.0e}"),
        gradients=float(f"{max(slopes):.0e}"),
        engine=said["merged"],
        adapter=said["adapter"],
        plan=unplanned(name),
    )


def refused_methods(name: str) -> list[str]:
    """Methods that refuse the family."""
    found = []
    for method, entry in METHODS.items():
        try:
            RoleModel(tiny(name, torch.float32)).add(ROLE, entry.config(**_SETTINGS.get(method, {})), trainable=True)
        except UserError:
            found.append(method)
    return found


def unplanned(name: str) -> str:
    """What the plan says of a family whose sizes it does not find; empty: it does."""
    config = json.loads(tiny(name, torch.float32).config.to_json_string(use_diff=False))
    try:
        sizes_on_meta(config, name)
    except UserError as error:
        return str(error)
    return ""


def line(name: str, family: TriedFamily) -> str:
    """A family's line of the page."""
    cells = [
        name,
        family.trained,
        family.padded_because or "",
        ", ".join(family.refused_methods),
        f"{family.states:.0e}",
        f"{family.gradients:.0e}",
        family.engine,
        family.adapter,
        family.plan or "yes",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def page(families: dict[str, TriedFamily]) -> str:
    """The page in docs."""
    equal = sum(family.engine == EQUAL for family in families.values())
    ending = f"\n{len(families)} families, {equal} of them equal in the engine.\n"
    return _HEAD + "".join(line(name, family) for name, family in families.items()) + ending


if __name__ == "__main__":
    said = verdicts(list(FAMILIES))
    families = {name: tried(name, said[name]) for name in FAMILIES}
    FACTS.write_text(json.dumps({name: asdict(family) for name, family in families.items()}, indent=2) + "\n")
    PAGE.write_text(page(families), encoding="utf-8")
