"""The page on correctness names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = sorted(set(re.findall(r"`(tests/\S+?)::(\w+)`", (ROOT / "docs/rl-correctness.md").read_text(encoding="utf-8"))))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_named_test_is_there(file: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_line_of_a_table_names_a_test() -> None:
    lines = (ROOT / "docs/rl-correctness.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| ---", "| what"))]
    assert len(rows) > 30
    assert [row for row in rows if "::test_" not in row] == []
