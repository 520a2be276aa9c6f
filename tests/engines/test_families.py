"""The vLLM engine answers as transformers does for each family, or as the table says."""

from collections.abc import Sequence

import pytest

from tests.support.families import FAMILIES
from tests.support.family_engine import verdicts
from triptych.models.families import EQUAL, tried_families

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SIX = [name for name, family in FAMILIES.items() if family.ordinary]
REST = [name for name in FAMILIES if name not in SIX]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("names", [SIX, pytest.param(REST, marks=pytest.mark.exhaustive)], ids=["six", "rest"])
def test_greedy_answers_are_those_of_transformers_or_the_table_says_why_not(names: Sequence[str]) -> None:
    """32 tokens in float32 after prompts of many lengths in one batch: the base, a merged LoRA, a LoRA beside it."""
    found = verdicts(names)
    tried = tried_families()
    assert found == {name: {"merged": tried[name].engine, "adapter": tried[name].adapter} for name in names}


def test_the_six_that_differ_in_kind_are_equal() -> None:
    assert {name: tried_families()[name].engine for name in SIX} == dict.fromkeys(SIX, EQUAL)
