"""The pictures of the dashboards are of the dashboards as they are."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from triptych.observe.dashboards import BOARDS

PICTURES = Path(__file__).parents[2] / "examples" / "reviews" / "pictures"


@pytest.mark.parametrize("name", ["training", "rl", "serving", "cluster"])
def test_a_picture_shows_every_panel(name: str) -> None:
    root = ElementTree.fromstring((PICTURES / f"{name}.svg").read_text(encoding="utf-8"))
    texts = [text for text in root.itertext() if text.strip()]
    assert BOARDS[name].title in texts
    assert {panel.title for panel in BOARDS[name].panels} <= set(texts), "run tests/deploy/pictures.py"
    charts = root.findall(".//{http://www.w3.org/2000/svg}svg")
    empty = [text for text in texts if text.startswith("No data")]
    assert len(charts) + len(empty) == len(BOARDS[name].panels)
    assert all(text.startswith("No data: ") for text in empty), "a panel is empty, and nobody knows why"


def test_the_reports_picture_is_one() -> None:
    assert (PICTURES / "report.png").read_bytes().startswith(b"\x89PNG")
