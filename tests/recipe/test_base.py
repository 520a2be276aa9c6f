"""Defaults of sections that a recipe gives in part."""

from triptych.recipe.environment import Calculator
from triptych.recipe.method import Mam
from triptych.recipe.rl_training import RlTraining


def test_a_section_that_is_given_in_part_keeps_what_the_field_says() -> None:
    train = RlTraining.model_validate({"steps": 1, "optimizer": {"schedule": "linear"}})
    assert (train.optimizer.lr, train.optimizer.schedule) == (1e-4, "linear")
    assert Calculator.model_validate({"calls": {"max_failed": 0.5}}).calls.retries == 0
    mam = Mam.model_validate({"name": "mam", "prefix": {"name": "prefix_tuning", "init": "random"}})
    assert mam.prefix.num_virtual_tokens == 30


def test_what_is_given_goes_before_the_default() -> None:
    assert Calculator.model_validate({"calls": {"retries": 3}}).calls.retries == 3


def test_learners_of_reinforcement_learning_have_two_threads_or_more() -> None:
    given = [{}, {"count": 2}, {"cpus": 8}, {"cpus": 8, "threads": 1}]
    found = [RlTraining.model_validate({"steps": 1, "workers": one}).workers.threads for one in given]
    assert found == [2, 2, 8, 1]
