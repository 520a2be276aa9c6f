"""The table of families in the package is that of the tests, and the page in docs prints it."""

import pytest
import torch

from tests.support.families import FAMILIES, each_family, tiny
from tests.support.family_table import PAGE, page, refused_methods, unplanned
from triptych.forward.roles import RoleModel
from triptych.models.families import tried_families


def test_the_page_prints_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(tried_families())


def test_the_table_has_every_family() -> None:
    assert list(tried_families()) == list(FAMILIES)


@pytest.mark.slow
@each_family
def test_a_family_is_packed_or_padded_and_planned_as_the_table_says(name: str) -> None:
    tried = tried_families()[name]
    assert RoleModel(tiny(name, torch.float32)).padded_because == tried.padded_because
    assert unplanned(name) == tried.plan


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_methods_refuse_as_the_table_says(name: str) -> None:
    assert tuple(refused_methods(name)) == tried_families()[name].refused_methods
