"""Every method trains what it declares, goes on, comes out and loads again."""

from pathlib import Path

import pytest

from tests.support.conformance.cells import Cell, all_cells, quick_cells, refusal
from tests.support.conformance.table import Found, faults, run

CELLS = [cell for cell in quick_cells() if not refusal(cell)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """All cells at once: starting two processes takes longer than a cell."""
    return run(CELLS, tmp_path_factory.mktemp("conformance"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell, found: dict[str, Found]) -> None:
    result = found[str(cell)]
    assert faults(cell, result) == [], result.get("trace")


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.timeout(5400)
def test_whole_table(tmp_path: Path) -> None:
    """As `make conformance` prints it."""
    cells = all_cells()
    results = run(cells, tmp_path)
    assert {str(cell): wrong for cell in cells if (wrong := faults(cell, results[str(cell)]))} == {}
