"""What is traced without numbers against the same step with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.live_tensors import Alive, config
from triptych.measure import traced
from triptych.measure.dry_run import accumulated, dry_run, random_base
from triptych.measure.trace import UNTRACED, WARM, trace
from triptych.methods import METHODS
from triptych.plan import estimate
from triptych.plan.memory import micro_batch
from triptych.recipe import Recipe

pytestmark = pytest.mark.slow  # a minute in all

SETTINGS: dict[str, Any] = {"freeze": {"layers": 1}, "bitfit": {"missing": "add"}, "c3a": {"block_size": 32}}


def recipe(
    folder: Path, *, layers: int = 4, kind: str = "sft", model: Any = None, train: Any = None, **stage: Any
) -> Recipe:
    """A stage on a tiny base of so many blocks."""
    settings = config(layers, vocab_size=512)
    (folder / "config.json").write_text(settings.to_json_string(use_diff=False))
    training = {"steps": 9, "batch": {"rows": 4, "max_length": 64, "micro_tokens": 256}} | (train or {})
    values = {"kind": kind, "data": {"train": {"path": "rows.jsonl"}}, "train": training} | stage
    base = {"base": str(folder), "dtype": "float32"} | (model or {})
    return Recipe.model_validate({"name": "tiny", "model": base, "stages": {"stage": values}})


def real(planned: Recipe) -> int:
    """Bytes of tensors at the peak of the same step with numbers, weights and all."""
    stage = planned.trained["stage"]
    run = dry_run(planned, "stage", random_base(planned.model), "single")
    run.step(WARM)
    held = [tensor for one in run.learner.each for tensor in (*one.model.parameters(), *one.model.buffers())]
    for one in run.learner.each:
        held += [b for role in one.model.attached for b in one.model.buffers_of(role).values()]
        held += [piece.values for piece in one.strategy.slices()]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held}
    with Alive(held) as alive:
        run.step(micro_batch(stage), accumulated(stage, micro_batch(stage)))
    return sum(storages.values()) + alive.peak


@pytest.mark.parametrize(
    "name", ["lora", "dora", "adalora", "ia3", "houlsby", "p_tuning_v2", "prompt_tuning", "freeze", "full"]
)
def test_a_traced_step_is_the_real_one(tmp_path: Path, name: str) -> None:
    planned = recipe(tmp_path, method={"name": name} | SETTINGS.get(name, {}))
    (parts,) = trace(planned, "stage", 4).values()
    assert parts.total() == pytest.approx(real(planned), rel=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mixture_is_traced_in_any_precision(tmp_path: Path, dtype: str) -> None:
    planned = recipe(tmp_path, model={"dtype": dtype}, method={"name": "lora"})
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    settings = json.loads((tmp_path / "config.json").read_text()) | sizes | {"model_type": "qwen3_moe"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (parts,) = trace(planned, "stage", 4).values()
    assert parts.total() == pytest.approx(real(planned), rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"dtype": "bfloat16"}},
        {"model": {"packing": False}},
        {"model": {"quantization": "int8"}},
        {"train": {"memory": {"checkpointing": "full", "loss_chunk": None}}},
        {"train": {"memory": {"checkpointing": "selective", "loss_chunk": 32}}},
        {"train": {"batch": {"rows": 16, "max_length": 64, "micro_tokens": 256}}},
        {"kind": "reward"},
        {"kind": "dpo"},
        {"kind": "kto"},
        {"kind": "rrhf", "max_answers": 3},
        {"kind": "classification", "labels": ["a", "b"]},
        {"kind": "token_classification", "labels": ["a", "b"]},
        {"kind": "question_answering"},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
def test_stages_and_levers(tmp_path: Path, change: dict[str, Any]) -> None:
    planned = recipe(tmp_path, **change)
    (parts,) = trace(planned, "stage", 4).values()
    assert parts.total() == pytest.approx(real(planned), rel=0.02)


WHOLE: dict[str, Any] = {
    "kind": "rl",
    "policy": "sft@1",
    "method": {"name": "full"},
    "algorithm": {"name": "grpo"},
    "rewards": [{"name": "length", "limit": 24, "cache": 8}],
    "rollout": {"prompts_per_step": 2, "max_prompt_tokens": 40, "sampling": {"max_new_tokens": 24}},
    "train": {"batch": {"micro_tokens": 256}},
}


@pytest.mark.parametrize(
    "change",
    [{}, {"policy": "base"}, {"kl": {"coef": 0.0}}, {"algorithm": {"name": "ppo"}}, {"model": {"dtype": "bfloat16"}}],
    ids=str,
)
def test_a_whole_policy_is_traced_beside_the_models_of_other_roles(tmp_path: Path, change: dict[str, Any]) -> None:
    planned = recipe(tmp_path, **(WHOLE | change))
    last = list(trace(planned, "stage", 4).values())[-1]
    assert last.total() == pytest.approx(real(planned), rel=0.03)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in [*METHODS, "unipelt"] if name not in UNTRACED])
def test_every_method_is_traced(tmp_path: Path, name: str) -> None:
    planned = recipe(tmp_path, layers=2, method={"name": name} | SETTINGS.get(name, {}))
    (parts,) = trace(planned, "stage", 2).values()
    assert 0 < parts["adapter"] <= parts.total()
    assert parts["activations"] > 0


def test_blocks_that_are_not_alike_are_all_traced(tmp_path: Path) -> None:
    low, high = (
        trace(recipe(tmp_path, layers=6, method={"name": "lora", "layers": [block]}), "stage", 6)["policy"]
        for block in (0, 5)
    )
    assert low["activations"] > 1.5 * high["activations"]


@pytest.mark.parametrize(
    ("case", "saved"),
    [
        ("lora, 350m, bfloat16, 8192 x 512, reward", 0),
        ("ia3, 1b, bfloat16, 4096 x 2048, checkpointing selective, chunk None", 2 * 2048 * 128_256),
        ("houlsby, 135m, bfloat16, 8192 x 256, classification, padded", 0),
    ],
)
def test_a_gpus_tensors_are_those_traced(case: str, saved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`saved`: since the GPU was measured, the loss holds 2 bytes less of each logit of the tokens that are learned."""
    tests = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(tests / "bench")
    from plan.configurations import gpu_configurations

    measured = json.loads((tests / "gpu" / "h200.json").read_text(encoding="utf-8"))["results"]
    actual = next(one["figures"]["allocated"] for one in measured if one["case"] == case)
    planned = next(one.recipe() for one in gpu_configurations() if one.name == case)
    (role,) = estimate(planned, machine="1xh200-141", exact=True, trace=traced).stages["stage"].roles.values()
    before = ("weights", "runtime", "kernels", "cpu_snapshot")
    parts = {name: size.expected for name, size in role.parts.items() if name not in before}
    assert sum(parts.values()) == pytest.approx(actual - saved, rel=0.005)


def test_roles_of_ppo_take_turns(three_stages: Path) -> None:
    from triptych.recipe import load_recipe

    loaded = load_recipe(three_stages, ["stages.ppo.train.batch.micro_tokens=96"])
    closed, exact = (
        estimate(loaded, machine="1xh100-80", stage="ppo", exact=e, trace=traced).stages["ppo"] for e in (False, True)
    )
    for role in ("policy", "critic"):
        one, two = (found.roles[role].parts["activations"].expected for found in (closed, exact))
        assert two == pytest.approx(one, rel=0.35)
    assert exact.roles["reference"] == closed.roles["reference"]
