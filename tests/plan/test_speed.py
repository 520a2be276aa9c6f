"""Speed from work and rates, and how long a recipe takes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from triptych.data.sources import quick_count
from triptych.models.sizes import model_sizes
from triptych.plan import Machine, MachineProfile, Node, Rates, duration, estimate, place
from triptych.plan.rates import CPU, keep_rates, kept_rates
from triptych.plan.speed import UsualRow, usual_micro
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
