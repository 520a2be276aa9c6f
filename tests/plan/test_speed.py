"""Speed from work and rates, and how long a recipe takes."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from triptych.cli import plan_tables
from triptych.data.sources import quick_count
from triptych.models.sizes import model_sizes
from triptych.plan import Machine, MachineProfile, Node, Rates, duration, estimate, place
from triptych.plan.rates import CPU, keep_rates, kept_rates
from triptych.plan.speed import Speed, UsualRow, usual_micro
from triptych.plan.workload import AMOUNTS, Computation, Micro
from triptych.recipe import Full, Lora, Memory, Recipe, Source
from triptych.recipe.method import Freeze

Reviews = Callable[..., Recipe]
LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * 2**30),))


def only(**costs: float) -> Rates:
    """A machine where only some work takes time."""
    return Rates({"bfloat16": dict.fromkeys(AMOUNTS, 0.0) | costs}, {1: 1.0, 2: 1.5})


def test_frozen_weights_have_no_gradients(reviews: Reviews) -> None:
    sizes, micro = model_sizes(reviews().model), Micro(count=1, tokens=512, length=512, learned=0)
    lora, full = (
        Computation(sizes, method, "float32", Memory()).passes(micro).product_flops for method in (Lora(r=1), Full())
    )
    weights = 2 * 512 * sizes.layers * sum(i * o for i, o, _ in sizes.linears.values())
    assert full == 3 * weights
    assert 2 * weights < lora < 2.02 * weights


def test_checkpointing_pays_the_blocks_again(reviews: Reviews) -> None:
    sizes, micro = model_sizes(reviews().model), Micro(count=2, tokens=512, length=512, learned=256)
    none, full = (
        Computation(sizes, Full(), "float32", Memory(checkpointing=kind)).passes(micro) for kind in ("none", "full")
    )
    blocks = 2 * 2 * 512 * sizes.layers * sum(i * o for i, o, _ in sizes.linears.values())
    assert full.product_flops - none.product_flops == blocks
    assert full.logits == none.logits == 2 * 256 * sizes.vocab


def test_blocks_below_all_that_train_have_no_backward_pass(reviews: Reviews) -> None:
    sizes, micro = model_sizes(reviews().model), Micro(count=1, tokens=512, length=512, learned=0)
    one, two, all_of_them = (
        Computation(sizes, Freeze(layers=layers), "float32", Memory()).passes(micro) for layers in (1, 2, sizes.layers)
    )
    block = 2 * 512 * sum(i * o for i, o, _ in sizes.linears.values())
    assert two.product_flops - one.product_flops == 2 * block
    assert all_of_them == Computation(sizes, Full(), "float32", Memory()).passes(micro)
    assert all_of_them.operations - one.operations == (sizes.layers - 1) * (two.operations - one.operations)


def test_micro_batches_of_usual_rows(reviews: Reviews) -> None:
    stage = reviews("stages.sft.train.batch={rows: 16, max_length: 512, micro_tokens: 1024}").stages["sft"]
    micro = usual_micro(stage, UsualRow())  # type: ignore[arg-type]
    assert (micro.count, micro.tokens, micro.length) == (4, 1024, 256)
    whole = usual_micro(stage, UsualRow(1.0))  # type: ignore[arg-type]
    assert (whole.count, whole.tokens) == (8, 1024)


def test_measured_rates_take_the_place_of_assumed_ones(reviews: Reviews) -> None:
    recipe = reviews()
    slow, fast = (
        estimate(recipe, machine=LAPTOP, stage="sft", profile=MachineProfile(only(product_flops=cost)))
        for cost in (2e-11, 1e-11)
    )
    assert fast.tokens_per_second == pytest.approx(2 * slow.tokens_per_second)


def test_threads_speed_up_as_measured_and_crowds_share(reviews: Reviews) -> None:
    profile = MachineProfile(only(product_flops=1e-11))
    one, two, crowd = (
        estimate(reviews(f"stages.sft.train.workers={workers}"), machine=LAPTOP, stage="sft", profile=profile)
        for workers in ("{threads: 1}", "{threads: 2}", "{count: 2, threads: 2}")
    )
    assert two.tokens_per_second == pytest.approx(1.5 * one.tokens_per_second)
    # Two workers of two threads on two cores: each at half its speed.
    assert crowd.stages["sft"].speed.computing == pytest.approx(two.stages["sft"].speed.computing, rel=0.01)


@pytest.mark.parametrize(("strategy", "sent"), [("ddp", 2 * 4), ("zero1", 2 * 4), ("fsdp", None)])
def test_what_workers_send(reviews: Reviews, strategy: str, sent: int | None) -> None:
    recipe = reviews(f"stages.sft.train.workers={{count: 2, gpus: 1, strategy: {strategy}}}")
    speed = estimate(recipe, machine="2xl4-24", stage="sft").stages["sft"].speed
    adapter, weights, link = 4_884_480, 134_515_008, 3.2e10
    expected = adapter * sent if sent else 2 * 2 * weights + 4 * adapter  # one micro-batch: gathered twice, in bfloat16
    assert speed.communicating == pytest.approx(0.5 * expected / link)


def test_rates_are_kept_for_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    assert kept_rates() is None
    keep_rates(CPU)
    assert kept_rates() == CPU


def rows_of(folder: Path) -> Mapping[str, Source]:
    lines = "".join(json.dumps({"text": number}) + "\n" for number in range(100))
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.csv").write_text("text\n" + "x\n" * 7)
    sources = {"all": "a.jsonl", "table": "a.csv", "none": "b.jsonl"}
    found = {name: Source(path=str(folder / file)) for name, file in sources.items()}
    return found | {"some": Source(path=str(folder / "a.jsonl"), limit=30), "hub": Source(path="hf://owner/name")}


def test_rows_of_local_files_are_counted(tmp_path: Path) -> None:
    found = {name: quick_count(source) for name, source in rows_of(tmp_path).items()}
    assert found == {"all": 100, "table": 7, "none": None, "some": 30, "hub": None}


def test_time_and_cost_of_a_recipe(reviews: Reviews) -> None:
    recipe = reviews("stages.sft.train={epochs: 2}", "stages.reward.train={steps: 5}")
    found, placement = estimate(recipe, machine=LAPTOP), place(recipe, LAPTOP)
    lasts = duration(recipe, found, placement, {"sft": 100}, price_per_hour=3.0)
    assert {name: stage.steps for name, stage in lasts.stages.items()} == {"sft": 14, "reward": 5, "ppo": 8}
    sft, reward, ppo = (lasts.stages[name].seconds for name in ("sft", "reward", "ppo"))
    assert sft == pytest.approx(14 * found.stages["sft"].speed.step_seconds)
    assert placement.waves == [["sft", "reward"], ["ppo"]]
    assert lasts.seconds == pytest.approx(max(sft, reward) + ppo)
    assert lasts.device_hours == pytest.approx((sft + reward + 2 * ppo) / 3600)
    assert lasts.cost == pytest.approx(3 * lasts.seconds / 3600)
    unknown = duration(recipe, found, placement, {}, None)
    assert (unknown.stages["sft"].steps, unknown.stages["sft"].rows, unknown.cost) == (2 * 63, None, None)


SHORT = (
    "stages.ppo.rollout={prompts_per_step: 4, samples_per_prompt: 2, max_prompt_tokens: 64}",
    "stages.ppo.rollout.sampling.max_new_tokens=32",
    "stages.ppo.evaluation.max_new_tokens=32",
)
"""8 samples of 32 tokens behind 32 of a prompt."""


def ppo_speed(recipe: Recipe, **costs: float) -> Speed:
    return estimate(recipe, machine=LAPTOP, stage="ppo", profile=MachineProfile(only(**costs))).stages["ppo"].speed


def test_a_whole_reward_model_costs_a_pass_without_an_adapter(reviews: Reviews) -> None:
    words = (*SHORT, "stages.ppo.algorithm={name: grpo}", "stages.ppo.kl.coef=0")
    lora, whole = (
        ppo_speed(reviews(*words, f"stages.reward.method={method}"), product_flops=1e-11).computing
        for method in ("{name: lora, r: 4, targets: [q_proj]}", "{name: full}")
    )
    sizes = model_sizes(reviews().model)
    inputs, outputs, _ = next(size for name, size in sizes.linears.items() if name.endswith("q_proj"))
    thin = 2 * 8 * 64 * sizes.layers * 4 * (inputs + outputs)
    assert lora - whole == pytest.approx(thin * 1e-11 / 1.5, rel=1e-6)
    none = ppo_speed(reviews(*words, "stages.ppo.rewards=[{name: length, limit: 20, cache: 4}]"), product_flops=1e-11)
    blocks = 2 * 8 * 64 * sizes.layers * sum(i * o for i, o, _ in sizes.linears.values())
    assert whole - none.computing == pytest.approx(blocks * 1e-11 / 1.5, rel=1e-6)


def test_engines_of_a_teacher_read_all_samples_and_compute_logits_of_every_token(reviews: Reviews) -> None:
    teacher = "{base: smollm2-135m-instruct, engines: {engines: 2, cpus: 0.25}}"
    words = (*SHORT, "stages.ppo.rollout.cpus=0.25", f"stages.ppo.algorithm={{name: opd, teacher: {teacher}}}")
    recipe = reviews(*words)
    (one,) = recipe.stages["ppo"].engine_models
    sizes = model_sizes(one.model)
    products = sizes.layers * sum(i * o for i, o, _ in sizes.linears.values()) + sizes.hidden * sizes.vocab
    speed = ppo_speed(recipe, product_flops=1e-11)
    assert speed.judging == pytest.approx(2 * 8 * 64 * products * 1e-11 / 2, rel=1e-9)
    assert speed.step_seconds == speed.computing + speed.communicating + speed.sampling + speed.judging
    twice = ppo_speed(reviews(*words, "stages.ppo.rollout.prompts_per_step=8"), product_flops=1e-11)
    assert twice.judging == pytest.approx(2 * speed.judging)
    assert ppo_speed(reviews(*SHORT), product_flops=1e-11).judging == 0.0


def test_in_a_critics_first_steps_the_policy_costs_no_update(reviews: Reviews) -> None:
    steps = ("stages.ppo.train.steps=8",)
    all_of_them, six, none = (
        ppo_speed(reviews(*SHORT, *steps, f"stages.ppo.algorithm.critic.warmup_steps={first}"), product_flops=1e-11)
        for first in (0, 2, 4)
    )
    saved = all_of_them.computing - six.computing
    assert none.computing == pytest.approx(all_of_them.computing - 2 * saved)
    sizes, recipe = model_sizes(reviews().model), reviews(*SHORT)
    method = recipe.stages["sft"].own_method
    assert method is not None
    tokens = 8 * 64
    work = Computation(sizes, method, "bfloat16", recipe.trained["ppo"].train.memory)
    micro = Micro(1, tokens, 64, tokens / 2)
    flops = work.passes(micro).product_flops * recipe.trained["ppo"].shape().sampling.epochs  # type: ignore[union-attr]
    assert saved == pytest.approx(flops / 4 * 1e-11 / 1.5, rel=1e-6)


def test_rounds_of_dynamic_sampling_are_said_not_counted(reviews: Reviews) -> None:
    words = (*SHORT, "stages.ppo.algorithm={name: grpo, dynamic_sampling: %s}")
    none, ten = (
        ppo_speed(reviews(*(word % rounds if "%s" in word else word for word in words)), product_flops=1e-11)
        for rounds in (0, 10)
    )
    assert none.at_least is None
    assert ten.at_least is not None
    assert "algorithm.dynamic_sampling takes up to 10 more rounds" in ten.at_least
    assert ten.step_seconds == none.step_seconds
    recipe = reviews(SHORT[0], *SHORT[1:], "stages.ppo.algorithm={name: grpo, dynamic_sampling: 10}")
    found = estimate(recipe, machine=LAPTOP)
    lasts = duration(recipe, found, place(recipe, LAPTOP), {}, None)
    assert {name for name, stage in lasts.stages.items() if stage.at_least} == {"ppo"}
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(plan_tables.totals_table(found, measured=True))
    console.print(plan_tables.duration_table(lasts))
    text = console.export_text()
    assert text.count("at least") == 1 + 1 + 1, "seconds of a step, of the stage, and in all"
    assert "ppo: algorithm.dynamic_sampling takes up to 10 more rounds" in text
