"""What `auto` comes to: the fastest that fits, the batch unchanged."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from triptych.errors import UserError
from triptych.measure import traced
from triptych.plan import Machine, Node, choose, estimate, machine, nearest_that_fits, options
from triptych.plan.plot import draw
from triptych.plan.settings import ALL, Settings
from triptych.recipe import Recipe, load_recipe
from triptych.recipe.kinds import Sft

Reviews = Callable[..., Recipe]
LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * 2**30),))
AUTO = (
    "stages.sft.train.batch.micro_tokens=auto",
    "stages.sft.train.memory.checkpointing=auto",
    "stages.sft.train.memory.loss_chunk=auto",
)


def test_auto_in_the_place_of_a_value(reviews: Reviews, recipe_file: Path) -> None:
    stage = reviews(*AUTO).stages["sft"]
    assert isinstance(stage, Sft)
    assert stage.train.auto == ("micro_tokens", "checkpointing", "loss_chunk")
    recipe_file.write_text(
        recipe_file.read_text()
        .replace("train: {epochs: 1}", "train: {epochs: 1, batch: {micro_tokens: auto}}", 1)
        .replace("{steps: 8}", "{steps: 8, batch: {micro_tokens: auto}, memory: {checkpointing: auto}}")
    )
    loaded = load_recipe(recipe_file)
    assert loaded.trained["sft"].train.auto == ("micro_tokens",)
    assert loaded.trained["ppo"].train.auto == ("micro_tokens", "checkpointing")


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["2.5GB", "4GB", "9GB", "20GB"])
def test_nothing_that_fits_is_faster(reviews: Reviews, memory: str) -> None:
    recipe = reviews(*AUTO, f"memory={memory}")
    choice = choose(recipe, "sft", LAPTOP)
    assert choice.best.peak.high <= choice.best.room <= float(memory.removesuffix("GB")) * 1e9
    fitting = [option for option in options(recipe, "sft", LAPTOP) if option.fits]
    assert choice.best.tokens_per_second >= 0.99 * max(option.tokens_per_second for option in fitting)
    assert len(choice.runners_up) == len(fitting) - 1
    assert all(option.peak.high > option.room and "may need" in option.why_not for option in choice.refused)


@pytest.mark.slow
def test_more_memory_is_never_slower(reviews: Reviews) -> None:
    speeds = [
        choose(reviews(*AUTO, f"memory={gb}GB"), "sft", LAPTOP).best.tokens_per_second
        for gb in (1.7, 2.5, 3, 4, 6, 9, 20)
    ]
    assert all(later >= 0.99 * earlier for earlier, later in pairwise(speeds))
    assert speeds[-1] > 1.2 * speeds[0]


@pytest.mark.slow
def test_what_the_closed_form_is_not_sure_of_is_traced(reviews: Reviews) -> None:
    recipe = reviews("stages.sft.train.batch.micro_tokens=auto", "memory=2.5GB")
    sure = choose(recipe, "sft", LAPTOP).best
    found = choose(recipe, "sft", LAPTOP, exact=True, trace=traced).best
    assert found.tokens_per_second > 1.02 * sure.tokens_per_second
    assert found.peak.high <= found.room
    [rough] = [option for option in options(recipe, "sft", LAPTOP) if option.settings == found.settings]
    assert rough.peak.expected <= rough.room < rough.peak.high


def test_only_what_is_left_to_auto_changes(reviews: Reviews) -> None:
    recipe = reviews(AUTO[0], "stages.sft.train.memory.checkpointing=selective", "memory=4GB")
    found = options(recipe, "sft", LAPTOP)
    assert {(o.settings.checkpointing, o.settings.loss_chunk, o.settings.strategy) for o in found} == {
        ("selective", 512, "single")
    }
    assert [o.settings.micro_tokens for o in found] == [512, 1024, 2048, 4096, 8192]


@pytest.mark.slow
def test_the_estimate_is_that_of_the_choice_and_the_batch_stays(reviews: Reviews) -> None:
    recipe = reviews(*AUTO, "memory=4GB")
    best = choose(recipe, "sft", LAPTOP).best
    found = estimate(recipe, machine=LAPTOP, stage="sft").stages["sft"]
    assert found.peak == best.peak
    assert found.tokens_per_second == best.tokens_per_second
    settled = best.settings.on(recipe.trained["sft"])
    assert isinstance(settled, Sft)
    assert settled.train.batch.rows == 16
    assert settled.train.auto == ()
    assert Settings.of(settled, "single") == best.settings


def test_workers_that_do_not_fit_by_themselves_are_sharded(reviews: Reviews) -> None:
    full = ("stages.sft.method={name: full}", "stages.ppo.policy=a@1", "memory=4GB")
    recipe = reviews(*AUTO, *full, "stages.sft.train.workers={count: 4, gpus: 1}")
    assert choose(recipe, "sft", machine("4xl4-24")).best.settings.strategy == "fsdp"


@pytest.mark.slow
def test_what_cannot_fit_names_what_does(reviews: Reviews) -> None:
    # 32,768 tokens at once do not fit; other settings do.
    large = reviews("stages.sft.train.batch={rows: 64, micro_tokens: 32768}", "memory=6GB")
    with pytest.raises(UserError, match=r"does not fit machine laptop .* nearest that fits: micro_tokens \d+"):
        estimate(large, machine=LAPTOP, stage="sft")
    assert "no setting fits: with micro_tokens 512, checkpointing full, loss_chunk 128" in nearest_that_fits(
        reviews("memory=1GB"), "sft", LAPTOP
    )
    with pytest.raises(UserError, match=r"stages.sft: no setting fits"):
        choose(reviews(*AUTO, "memory=1GB"), "sft", LAPTOP)


def test_ppo_has_levers_of_its_own(reviews: Reviews) -> None:
    recipe = reviews("stages.ppo.train.batch.micro_tokens=auto", "stages.ppo.train.memory.checkpointing=auto")
    found = options(recipe, "ppo", LAPTOP)
    assert len({option.settings.micro_tokens for option in found}) > 3
    assert choose(recipe, "ppo", LAPTOP).best.fits


def test_exact_without_a_tracer_is_refused(reviews: Reviews) -> None:
    for ask in (lambda: choose(reviews(*AUTO), "sft", LAPTOP, exact=True), lambda: estimate(reviews(), exact=True)):
        with pytest.raises(ValueError, match="exact needs `trace`"):
            ask()


def test_the_picture_has_a_point_for_each_setting(reviews: Reviews) -> None:
    found = options(reviews("memory=4GB"), "sft", LAPTOP, vary=ALL)
    picture = draw(found, "a <b>")
    assert picture.count("<circle") == len(found)
    assert picture.count('fill="#fff" stroke') == sum(not option.fits for option in found)
    assert "a &lt;b&gt;" in picture
