"""The table of families as a page: `python -m tests.support.family_table` writes docs/reference/families.md.

Each row is measured: a tiny random model of the family with a LoRA, packed where it can be and padded, against
transformers' own attention, each row alone.
"""

from pathlib import Path

import torch

from tests.models.test_families import LORA, ROLE, disturb, expected, largest, lone, ours
from tests.support.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs/reference/families.md"
_HEAD = """\
# Families of models

Any causal language model that transformers loads is trained, packed where its tokens meet in attention alone, else
padded; what attention is given and nobody computes is refused by name. These were checked with tiny random models: the
largest difference of hidden states and logits, and of LoRA's gradients beside the largest of them, from transformers'
own attention with each row alone, in float64. Families that compute norms, routers or states in float32 differ by that.

Prefixes (prefix tuning, P-tuning v2) need keys and values in every block. LoRA on `all-linear` reaches the experts of
mixtures, as peft's `target_parameters` do: without dropout, with `init` default or gaussian, not under zero3.
`experts: false` leaves them as they are, as all other methods do, DoRA among them. vLLM's CPU engine has no LoRA for
experts: rollouts sample from merged weights, and such an adapter is served once it is merged. LoRA leaves out routers,
and layers whose weights their family reads without calling them.

Written by `python -m tests.support.family_table`.

| family | trained | because | prefix | states and logits | gradients |
| --- | --- | --- | --- | --- | --- |
"""


def row(name: str) -> str:
    """A family's line of the table."""
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
    reason = model.padded_because
    prefix = "yes" if FAMILIES[name].prefix else "refused"
    trained = "padded" if reason else "packed"
    return f"| {name} | {trained} | {reason or ''} | {prefix} | {max(off):.0e} | {max(slopes):.0e} |"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(_HEAD + "".join(f"{row(name)}\n" for name in FAMILIES), encoding="utf-8")
