from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.errors import UserError
from triptych.plan import Machine, Node, machine, place
from triptych.plan.machines import GIB, GPUS
from triptych.plan.placement import Request, pack
from triptych.recipe import Recipe, load_recipe

Reviews = Callable[..., Recipe]


def cpus(*nodes: float) -> Machine:
    return Machine("test", tuple(Node(cpus=count, gpus=0, memory=24 * GIB) for count in nodes))


def request(count: int, cpus: float, gpus: float = 0.0) -> Request:
    return Request("s", "worker", count, cpus, gpus, "stages.s.train.workers.count")


def test_defaults_fit_a_node_of_two_cpus_with_independent_stages_side_by_side(reviews: Reviews) -> None:
    placement = place(reviews(), cpus(2))
    assert placement.waves == [["sft", "reward"], ["ppo"]]
    assert sum(r.count * r.cpus for r in placement.requests["ppo"]) == 2


def test_independent_stages_take_turns_where_both_do_not_fit(reviews: Reviews) -> None:
    recipe = reviews("stages.ppo.rollout.engines=1", "stages.ppo.train.workers.cpus=0.5")
    assert place(recipe, cpus(1)).waves == [["sft"], ["reward"], ["ppo"]]
    assert place(reviews("stages.sft.train.workers.cpus=2"), cpus(2)).waves == [["sft"], ["reward"], ["ppo"]]


def test_one_stage_alone(reviews: Reviews) -> None:
    assert place(reviews(), cpus(2), "ppo").waves == [["ppo"]]
    with pytest.raises(UserError, match="no stage `rewad`; did you mean `reward`\\?; allowed: sft, reward, ppo"):
        place(reviews(), cpus(2), "rewad")


REFUSED = [
    ("stages.ppo.rollout.engines=4", cpus(2),
     "stages.ppo does not fit machine test (2 CPUs, 24 GiB): it needs 3 CPUs (1 worker x 1 + 4 engines x 0.5) and "
     "there are 2 (1 missing); lower stages.ppo.train.workers.count or stages.ppo.train.workers.cpus or "
     "stages.ppo.rollout.engines or stages.ppo.rollout.cpus, or change `machine`"),
    ("stages.sft.train.workers.cpus=3", cpus(2, 2),
     "stages.sft does not fit machine test (2 nodes, 4 CPUs, 48 GiB): each worker asks for 3 CPUs and no node has more "
     "than 2 (1 missing); lower stages.sft.train.workers.cpus to 2, or change `machine`"),
    ("stages.sft.train.workers.gpus=1", cpus(2),
     "stages.sft does not fit machine test (2 CPUs, 24 GiB): each worker asks for 1 GPUs and no node has more than 0 "
     "(1 missing); lower stages.sft.train.workers.gpus to 0, or change `machine`"),
    ("stages.sft.train.workers.gpus=1.5", machine("8xh100-80"),
     "stages.sft.train.workers.gpus: 1.5 is no share of a GPU; allowed: up to 1, or a whole number"),
    ("stages.sft.train.workers={count: 2, cpus: 1.5}", cpus(2, 1, 1),
     "stages.sft does not fit machine test (3 nodes, 4 CPUs, 72 GiB): no way to lay 2 workers of 1.5 CPUs and 0 GPUs "
     "on its nodes; lower stages.sft.train.workers.count or stages.sft.train.workers.cpus or "
     "stages.sft.train.workers.gpus"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "on", "message"), REFUSED)
def test_a_stage_that_never_fits_is_refused(reviews: Reviews, override: str, on: Machine, message: str) -> None:
    with pytest.raises(UserError) as caught:
        place(reviews(override), on)
    assert str(caught.value) == message


def test_packing_gpus() -> None:
    two = Machine("test", (Node(cpus=8, gpus=2, memory=GIB),), GPUS["l4-24"])
    shared = pack([request(1, 1, 1), request(2, 1, 0.5)], two)
    assert shared is not None
    assert [place.gpus for place in shared] == [(0,), (1,), (1,)]
    assert pack([request(1, 1, 2)], two) is not None
    assert pack([request(2, 1, 0.6), request(1, 1, 0.5)], two) is None
    assert pack([request(3, 1, 0.6)], two) is None
    assert pack([request(1, 9)], two) is None


def test_packing_tenths_is_exact() -> None:
    assert pack([request(10, 0.1)], cpus(1)) is not None
    assert pack([request(11, 0.1)], cpus(1)) is None


def test_the_example_fits_two_cpus() -> None:
    example = Path(__file__).parents[2] / "examples" / "reviews" / "recipe.yaml"
    assert place(load_recipe(example), cpus(2)).waves[-1] == ["ppo"]
