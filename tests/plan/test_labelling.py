"""What a head of classes adds to a plan: its weights, and no logits of the vocabulary."""

from pathlib import Path

import pytest

from triptych.plan import Machine, Node, estimate
from triptych.plan.machines import GIB
from triptych.recipe import load_recipe

SERVER = Machine("server", (Node(cpus=64, gpus=0, memory=900 * GIB),))
HIDDEN = 576


@pytest.mark.parametrize(
    ("kind", "fields", "outputs"),
    [
        ("classification", "labels: [bad, good]", 2),
        ("token_classification", "labels: [O, B-PER, I-PER]", 3),
        ("question_answering", "max_answer_tokens: 20", 2),
    ],
)
def test_a_head_has_a_row_for_each_label(tmp_path: Path, kind: str, fields: str, outputs: int) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: heads\nmodel: {base: smollm2-135m-instruct}\nstages:\n"
        "  sft: {kind: sft, data: {train: {path: a.jsonl}}, train: {epochs: 1}}\n"
        f"  head:\n    kind: {kind}\n    {fields}\n"
        "    data: {train: {path: a.jsonl}}\n    train: {epochs: 1}\n"
    )
    planned = estimate(load_recipe(path), machine=SERVER)
    policy, head = planned.stages["sft"].roles["policy"], planned.stages["head"].roles["classifier"]
    assert head.parts["adapter"].expected - policy.parts["adapter"].expected == 4 * outputs * HIDDEN
    assert "logits" not in head.parts
    assert planned.stages["head"].tokens_per_second > 0
