"""Adapters of other tools: served = merged = continued = exported = plain peft, or refused with the reason."""

import re
from pathlib import Path

import pytest

from tests.support.adapter_cases import CASES
from tests.support.adapter_matrix import USES, AdapterMatrix, Tried
from tests.support.adapter_table import PAGE, bases, measured, page

TOLERANCE = 1e-4
"""Nats, in float32."""
KEPT = ("both patterns", "rsLoRA", "a base with biases", "DoRA", "tied head", "embeddings", "AdaLoRA", "PiSSA", "IA3")
REFUSED = ("trained head", "trained tokens", "trained biases", "names of torch.compile", "another width")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> AdapterMatrix:
    folder = tmp_path_factory.mktemp("matrix")
    return AdapterMatrix(folder, bases(folder))


def assert_equal_or_said(name: str, tried: Tried) -> None:
    assert tried.effect > 0.1, f"{name} shows"
    for use, found in tried.uses.items():
        assert found == documented(name, use) if isinstance(found, str) else found < TOLERANCE, (name, use)


def documented(name: str, use: str) -> str:
    """The reason that the page gives for which an adapter is not used so."""
    text = PAGE.read_text(encoding="utf-8")
    [row] = [line for line in text.splitlines() if re.match(rf"\| {re.escape(name)}(, kept as plain LoRA)? \|", line)]
    number = row.split(" | ")[3 + USES.index(use)].strip(" |").removeprefix("no (").removesuffix(")")
    return text.split(f"\n{number}. ")[1].partition("\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_an_adapter_computes_the_same_in_every_use_without_an_engine(matrix: AdapterMatrix, name: str) -> None:
    matrix.register(name)
    for use in USES[1:]:
        matrix.use(name, use)
    assert_equal_or_said(name, matrix.tried[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_engine_would_ignore_is_not_registered(matrix: AdapterMatrix, name: str) -> None:
    matrix.register(name)
    assert f"| {name} | {matrix.tried[name].refused} |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.exhaustive
@pytest.mark.cluster
def test_the_page_is_what_is_measured(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert list(found) == list(CASES)
    for name, tried in found.items():
        if tried.refused is None:
            assert set(tried.uses) == set(USES)
            assert_equal_or_said(name, tried)
    figures = re.compile(r"\d(\.\d)?e-\d\d|(?<=\| )\d+(\.\d)?(?= \|)")
    assert figures.sub("x", page(found)) == figures.sub("x", PAGE.read_text(encoding="utf-8"))
