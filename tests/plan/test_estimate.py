import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.plan import Machine, Node, RoleEstimate, estimate, machine
from triptych.plan.machines import GIB
from triptych.recipe import Full, Lora, Method, Recipe

Reviews = Callable[..., Recipe]
LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * GIB),))
SERVER = Machine("server", (Node(cpus=64, gpus=0, memory=900 * GIB),))
WEIGHTS, ADAPTER = 134_515_008, 4_884_480
"""Parameters of the base, and of an adapter of rank 16."""


def sft(recipe: Recipe, on: Machine | str = SERVER) -> RoleEstimate:
    return estimate(recipe, machine=on, stage="sft").stages["sft"].roles["policy"]


def test_weights_adapters_and_optimizer_are_exact(reviews: Reviews) -> None:
    policy = estimate(reviews(), machine=LAPTOP).stages["sft"].roles["policy"]
    exact = {name: part.expected for name, part in policy.parts.items() if part.low == part.high}
    adapter = ADAPTER * 4
    assert exact == {
        "weights": WEIGHTS * 2, "adapter": adapter, "gradients": adapter, "optimizer": 2 * adapter
    }  # fmt: skip
    assert policy.peak_bytes == sum(part.expected for part in policy.parts.values())


def test_reward_model_has_a_head_and_no_logits(reviews: Reviews) -> None:
    reward = estimate(reviews(), machine=LAPTOP).stages["reward"].roles["reward"]
    assert reward.parts["adapter"].expected == (ADAPTER + 577) * 4
    assert "logits" not in reward.parts


def test_every_weight_in_float32(reviews: Reviews) -> None:
    parts = sft(reviews("stages.sft.method={name: full}", "stages.ppo.policy=a@1")).parts
    exact = {
        name: parts[name].expected // WEIGHTS for name in ("weights", "masters", "gradients", "optimizer", "casts")
    }
    assert exact == {"weights": 2, "masters": 2, "gradients": 4, "optimizer": 8, "casts": 2}
    assert "adapter" not in parts


def test_members_of_an_ensemble_share_the_base_and_take_turns(reviews: Reviews) -> None:
    one, three = (
        estimate(reviews(f"stages.reward.members={n}"), machine=SERVER, stage="reward").stages["reward"] for n in (1, 3)
    )
    assert list(three.roles) == ["reward", "reward-1", "reward-2"]
    assert three.peak_bytes - one.peak_bytes == 2 * 4 * 4 * (ADAPTER + 577)
    assert three.tokens_per_second == pytest.approx(one.tokens_per_second / 3)
    ppo = estimate(reviews("stages.reward.members=3"), machine=SERVER, stage="ppo").stages["ppo"]
    assert ppo.roles["reward"].parts["adapter"].expected == 3 * 4 * (ADAPTER + 577)


def test_a_classifier_has_a_row_for_each_class(reviews: Reviews) -> None:
    stage = "{kind: classification, labels: [a, b, c], data: {train: {path: t.jsonl}}, train: {epochs: 1}}"
    found = estimate(reviews(f"stages.topic={stage}"), machine=SERVER, stage="topic").stages["topic"]
    parts = found.roles["classifier"].parts
    assert parts["adapter"].expected == 4 * (ADAPTER + 3 * 576)
    assert "logits" not in parts


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients", "optimizer"),
    [("ddp", 4, 4, 8), ("fsdp", 1, 1, 2), ("zero1", 4, 4, 3), ("zero2", 4, 1, 3), ("zero3", 1, 1, 2)],
)
def test_what_four_workers_share(reviews: Reviews, strategy: str, weights: int, gradients: int, optimizer: int) -> None:
    """Bytes a parameter on each worker; under zero1 and zero2 the optimizer's share has a copy of the weights."""
    recipe = reviews(
        "stages.sft.method={name: full}",
        "stages.ppo.policy=a@1",
        f"stages.sft.train.workers={{count: 4, strategy: {strategy}}}",
    )
    parts = sft(recipe).parts
    names = ("weights", "masters", "gradients", "optimizer")
    found = [round(parts[name].expected / WEIGHTS, 3) for name in names]
    assert found == [weights / 2, weights / 2, gradients, optimizer]
    assert ("gathered" in parts) == (strategy in ("fsdp", "zero3"))
    assert ("message" in parts) == (strategy == "ddp")


def test_an_elastic_group_is_planned_at_its_smallest(reviews: Reviews) -> None:
    elastic = "{count: 4, min_count: 2, strategy: fsdp}"
    alone = ("stages.reward.needs=[sft]", f"stages.sft.train.workers={elastic}")
    two = sft(reviews("stages.sft.train.workers={count: 2, strategy: fsdp}"))
    assert sft(reviews(*alone)).parts == two.parts


def test_what_is_offloaded_lies_in_the_memory_of_the_node(reviews: Reviews) -> None:
    workers = "{count: 2, gpus: 1, strategy: fsdp, offload: true}"
    found = estimate(reviews(f"stages.sft.train.workers={workers}"), machine="2xl4-24", stage="sft").stages["sft"]
    role = found.roles["policy"]
    moved = [part for part in role.parts if part.startswith("cpu_")]
    assert moved == ["cpu_weights", "cpu_adapter", "cpu_gradients", "cpu_optimizer", "cpu_snapshot"]
    assert list(found.devices) == ["node 0", "node 0 GPU 0", "node 0 GPU 1"]
    assert found.devices["node 0"].peak.expected == 2 * sum(role.parts[part].expected for part in moved)
    assert found.devices["node 0 GPU 0"].peak == role.peak


@pytest.mark.parametrize("method", [Full(), Lora()])
def test_a_checkpoint_of_a_whole_model_is_copied_beside_the_next_step(reviews: Reviews, method: Method) -> None:
    recipe = reviews("stages.sft.train.batch.micro_tokens=512")
    sft = recipe.trained["sft"].model_copy(update={"method": method})
    alone = recipe.model_copy(update={"stages": {"sft": sft}})
    parts = estimate(alone, machine=LAPTOP, stage="sft").stages["sft"].roles["policy"].parts
    assert ("snapshot" in parts) == isinstance(method, Full)
    if isinstance(method, Full):
        copied = parts["weights"].expected + parts["optimizer"].expected
        assert copied / 3 < parts["snapshot"].expected < parts["snapshot"].high < copied


def test_checkpointing_costs_time(reviews: Reviews) -> None:
    none, half, full = (
        estimate(reviews(f"stages.sft.train.memory.checkpointing={kind}"), machine=SERVER, stage="sft")
        for kind in ("none", "selective", "full")
    )
    assert none.tokens_per_second > half.tokens_per_second > full.tokens_per_second > 0.6 * none.tokens_per_second


def test_every_precision_has_an_estimate(reviews: Reviews) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        for on in (LAPTOP, "1xh100-80"):
            assert estimate(reviews(f"model.dtype={dtype}"), machine=on).peak_bytes > 0


def test_ppo_has_one_base_in_its_learner_and_engines_beside_it(reviews: Reviews) -> None:
    ppo = estimate(reviews(), machine=LAPTOP, stage="ppo").stages["ppo"]
    assert set(ppo.roles) == {"policy", "reference", "critic", "reward", "engine"}
    assert [role for role, found in ppo.roles.items() if "weights" in found.parts] == ["policy", "engine"]
    learner = [found for role, found in ppo.roles.items() if role != "engine"]
    # Roles take turns: the critic's activations need no room beside the policy's.
    turns = sum(ppo.roles["critic"].parts[part].expected for part in ("activations", "casts"))
    assert ppo.peak_bytes == sum(r.peak_bytes for r in learner) - turns + 2 * ppo.roles["engine"].peak_bytes


def test_a_whole_policy_has_a_model_of_its_own_and_its_reference_another(reviews: Reviews) -> None:
    """Exactly: weights of each copy; float32 masters, gradients and optimizer of what trains."""

    def parts(*overrides: str) -> dict[str, dict[str, int]]:
        ppo = estimate(reviews("stages.sft.method.name=full", *overrides), machine=SERVER, stage="ppo").stages["ppo"]
        names = ("weights", "masters", "adapter", "gradients", "optimizer")
        return {
            role: {name: found.parts[name].expected for name in names if name in found.parts}
            for role, found in ppo.roles.items()
            if role != "engine"
        }

    whole = {"weights": 2 * WEIGHTS, "masters": 2 * WEIGHTS, "gradients": 4 * WEIGHTS, "optimizer": 8 * WEIGHTS}
    own, scored = parts(), (ADAPTER + 577) * 4
    assert own["policy"] == whole
    assert own["reference"] == {"weights": 2 * WEIGHTS, "adapter": 0}
    assert own["critic"] == {
        "weights": 2 * WEIGHTS, "adapter": scored, "gradients": scored, "optimizer": 2 * scored
    }  # fmt: skip
    assert own["reward"] == {"adapter": scored}, "it stands on the base that the critic is counted with"
    assert "weights" not in parts("stages.ppo.policy=base")["critic"], "it shares the base with the reference"
    assert "reference" not in parts("stages.ppo.kl.coef=0")
    alone = parts("stages.ppo.rewards=[{name: length, limit: 20, cache: 4}]")
    head = {"gradients": 4 * WEIGHTS + 4 * 577, "optimizer": 8 * WEIGHTS + 8 * 577}
    assert alone["critic"] == whole | head, "a copy of the policy"


def test_a_whole_reward_model_has_a_model_of_its_own_in_the_learner(reviews: Reviews) -> None:
    """Exactly: its weights beside those of the base; of the critic, which copies it, also what trains."""

    def parts(*overrides: str) -> dict[str, dict[str, int]]:
        ppo = estimate(reviews("stages.reward.method.name=full", *overrides), machine=SERVER, stage="ppo").stages["ppo"]
        names = ("weights", "masters", "adapter", "gradients", "optimizer")
        return {
            role: {name: found.parts[name].expected for name in names if name in found.parts}
            for role, found in ppo.roles.items()
        }

    grpo = parts("stages.ppo.algorithm={name: grpo}")
    assert grpo["reward"] == {"weights": 2 * WEIGHTS, "adapter": 4 * 577}
    assert grpo["policy"]["weights"] == 2 * WEIGHTS
    assert "weights" not in grpo["reference"]
    ppo = parts()
    assert ppo["critic"] == {
        "weights": 2 * WEIGHTS, "masters": 2 * WEIGHTS, "gradients": 4 * WEIGHTS + 4 * 577,
        "optimizer": 8 * WEIGHTS + 8 * 577,
    }  # fmt: skip


def test_intervals_hold_their_middle(reviews: Reviews) -> None:
    for stage in estimate(reviews(), machine=LAPTOP).stages.values():
        for role in stage.roles.values():
            for part in (*role.parts.values(), role.peak):
                assert 0 <= part.low <= part.expected <= part.high


def test_memory_grows_with_what_it_depends_on(reviews: Reviews) -> None:
    grows: dict[str, list[Any]] = {
        "stages.sft.train.batch.micro_tokens": [1024, 2048, 4096],
        "stages.sft.method": ["{name: lora, r: 4}", "{name: lora, r: 64}", "{name: full}"],
        "stages.sft.train.workers.count": [1, 2, 4],
        "stages.sft.train.memory.checkpointing": ["full", "selective", "none"],
        "stages.sft.train.memory.loss_chunk": [64, 512, "null"],
        "stages.sft.train.optimizer.name": ["lion", "adamw_8bit", "adamw"],
        "model.quantization": ["int8", "null"],
    }
    for field, values in grows.items():
        peaks = [
            estimate(reviews(f"{field}={v}", "stages.ppo.policy=a@1"), machine=SERVER, stage="sft").peak_bytes
            for v in values
        ]
        assert all(a < b for a, b in pairwise(peaks)), field
    # A micro-batch is never larger than what a worker has of a step.
    few = ["stages.sft.train.batch.rows=1", "stages.sft.train.batch.max_length=128"]
    small, large = (
        estimate(reviews(*few, f"stages.sft.train.batch.micro_tokens={tokens}"), machine=SERVER, stage="sft").peak_bytes
        for tokens in (128, 4096)
    )
    assert small == large


def test_speed_of_this_stack_as_it_was_measured(reviews: Reviews) -> None:
    """SmolLM2-135M, LoRA r=8, two threads: 181 tokens/s in float32, 334 in bfloat16, on 2 cores with AVX-512 bf16."""
    for dtype, measured in (("float32", 181), ("bfloat16", 334)):
        recipe = reviews(f"model.dtype={dtype}", "stages.sft.method={name: lora, r: 8}")
        assert measured / 1.5 < estimate(recipe, machine=LAPTOP, stage="sft").tokens_per_second < 1.5 * measured


def test_gpus_are_faster_and_hold_their_own_processes(reviews: Reviews) -> None:
    recipe = reviews(
        "stages.ppo.train.workers.gpus=1", "stages.ppo.rollout.gpus=0.5", "stages.ppo.rollout.gpu_memory=0.3"
    )
    found = estimate(recipe, machine="8xh100-80", stage="ppo").stages["ppo"]
    assert list(found.devices) == ["node 0", "node 0 GPU 0", "node 0 GPU 1"]
    gpu = machine("8xh100-80").gpu
    assert gpu is not None
    assert found.devices["node 0 GPU 1"].peak.expected == 2 * int(0.3 * gpu.memory)
    assert found.tokens_per_second > 10 * estimate(reviews(), machine=LAPTOP, stage="ppo").tokens_per_second


def test_whole_recipe(reviews: Reviews) -> None:
    found = estimate(reviews("machine=1xl4-24"))
    assert found.machine.name == "1xl4-24"
    assert found.peak_bytes == max(stage.peak_bytes for stage in found.stages.values())
    assert found.tokens_per_second == min(stage.tokens_per_second for stage in found.stages.values()) > 0
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert found.as_dict()["stages"]["ppo"]["roles"]["critic"]["parts"]["gradients"]["low"] > 0


def test_adapter_versions_stand_in_for_stages(reviews: Reviews) -> None:
    named, version = (estimate(reviews(*o), machine=LAPTOP, stage="ppo") for o in ([], ["stages.ppo.policy=a@1"]))
    assert named.peak_bytes == version.peak_bytes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.sft.method={name: lora, targets: [v_prj]}"],
         "stages.sft.method.targets: `v_prj` is no linear layer of this model; did you mean `v_proj`?"),
        (["stages.sft.train.batch.max_length=9000"],
         "stages.sft.train.batch.max_length: 9000 tokens; allowed: up to 8192 with this base"),
        (["stages.sft.method={name: p_tuning_v2, num_virtual_tokens: 100}", "stages.sft.train.batch.max_length=8100",
          "stages.ppo.policy=other@1"],
         "stages.sft.train.batch.max_length: 8100 tokens; allowed: up to 8092 with this base and the method's 100 "),
        (["stages.reward.method={name: prompt_tuning}", "stages.ppo.rollout.max_prompt_tokens=8125"],
         "stages.ppo.rollout.max_prompt_tokens + rollout.sampling.max_new_tokens: 8173 tokens; allowed: up to 8172"),
        (["stages.ppo.rollout.max_prompt_tokens=8190"],
         "stages.ppo.rollout.max_prompt_tokens + rollout.sampling.max_new_tokens: 8238 tokens; allowed: up to 8192"),
        (["stages.ppo.rollout.max_prompt_tokens=8144", "stages.ppo.evaluation.max_new_tokens=200"],
         "stages.ppo.rollout.max_prompt_tokens + evaluation.max_new_tokens: 8344 tokens; allowed: up to 8192 with"),
        (["stages.sft.train.batch={rows: 999, micro_tokens: 200000}"],
         "stages.sft does not fit machine laptop (2 CPUs, 24 GiB): node 0 needs at least "),
        (["machine=4xq100"], "machine: `4xq100` is not known"),
    ],
)  # fmt: skip
def test_what_can_never_work_is_refused(reviews: Reviews, overrides: list[str], message: str) -> None:
    on = None if overrides[0].startswith("machine") else LAPTOP
    with pytest.raises(UserError) as caught:
        estimate(reviews(*overrides), machine=on)
    assert str(caught.value).startswith(message)


def test_prompt_and_answer_may_fill_the_context(reviews: Reviews) -> None:
    full = reviews("stages.ppo.rollout.max_prompt_tokens=8144")
    assert full.trained["ppo"].shape().context == 8192
    estimate(full, machine="8xh100-80", stage="ppo")


@pytest.mark.slow
def test_plan_needs_no_ray_vllm_or_torch() -> None:
    code = "import sys, triptych.plan, triptych.cli.plan; print({'ray', 'vllm', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
