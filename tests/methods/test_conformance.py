"""Every method trains what it declares, goes on, comes out and loads again. The whole table: `make conformance`."""

import pytest

from tests.support.conformance.cells import Cell, quick_cells
from tests.support.conformance.table import Found, faults, run

CELLS = quick_cells()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    """All cells at once: starting two processes takes longer than a cell."""
    return run(CELLS, tmp_path_factory.mktemp("conformance"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell, found: dict[str, Found]) -> None:
    result = found[str(cell)]
    if "refused" in result:
        pytest.skip(result["refused"])
    assert faults(cell, result) == [], result.get("trace")
