"""Pictures of what a run of the example shows: its dashboards, and its report.

    python -m tests.deploy.pictures [--profile quick]

Runs the example with a Prometheus beside it, asks that for every panel, and draws the answers with the report's own
charts: the panels are those of the dashboards, the look is not Grafana's. The data stays in build/pictures; run again,
it is drawn again.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from html import escape
from importlib import resources
from pathlib import Path

from tests.support.panels import WITHOUT
from tests.support.scraping import Prometheus, free_port, prometheus
from triptych.observe.dashboards import BOARDS, Dashboard, Panel, filled
from triptych.observe.report import svg
from triptych.observe.report.series import Chart, Series

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "reviews"
EVERY_S, WINDOW = 5, "1m"
"""Seconds between two scrapes, and what rates are taken over: Ray exports every ten seconds."""

UNITS = {"bytes": (1e-9, "GB"), "percentunit": (100.0, "%"), "percent": (1.0, "%"), "s": (1.0, "s"),
         "reqps": (1.0, "a second"), "Bps": (1e-6, "MB/s"), "celsius": (1.0, "°C"), "watt": (1.0, "W")}  # fmt: skip
"""Grafana's name of a unit -> factor, and how it is written."""

COLUMNS, GAP, HEAD, LEGEND, LINE = 3, 16, 86, 3, 16
CARD_WIDTH, CARD_HEIGHT = svg.WIDTH + 2 * GAP, svg.HEIGHT + 34 + LEGEND * LINE + 10
OF_EXAMPLE = {
    ("serving", "Errors by code"): "no request fails",
    ("serving", "Time to the first token"): "no answer is streamed",
}
"""(dashboard, panel) -> why the example has nothing to show there."""
NAMED = 40
"""The longest name in a legend."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=("full", "quick"), default="full")
    parser.add_argument("--out", type=Path, default=EXAMPLE / "pictures")
    options = parser.parse_args()
    folder = ROOT / "build" / "pictures" / options.profile
    folder.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    port = free_port()
    with prometheus(folder, port, f"{EVERY_S}s") as server:
        if server is None:
            sys.exit("error: prometheus is not installed (Debian: prometheus)")
        start, end = _demo(options.profile, port, folder / "span.json")
        for name, board in BOARDS.items():
            charts = [_chart(server, panel, start, end) for panel in board.panels]
            picture = _picture(name, board, charts, f"make demo PROFILE={options.profile}")
            (options.out / f"{name}.svg").write_text(picture, encoding="utf-8")
    name = "reviews" if options.profile == "full" else "reviews-quick"
    _screenshot(ROOT / "runs" / name / "report.html", options.out / "report.png")


def _demo(profile: str, port: int, span: Path) -> tuple[float, float]:
    """From when to when the example ran: now, unless `span` says that it did; stopped, it goes on."""
    start, *ended = json.loads(span.read_text(encoding="utf-8")) if span.is_file() else [time.time()]
    if not ended:
        span.write_text(json.dumps([start]), encoding="utf-8")
        words = [sys.executable, str(EXAMPLE / "demo.py"), "--profile", profile, "--metrics-port", str(port)]
        subprocess.run(words, check=True)
        ended = [time.time()]
        span.write_text(json.dumps([start, *ended]), encoding="utf-8")
    return start, ended[0]


def _chart(server: Prometheus, panel: Panel, start: float, end: float) -> Chart:
    factor, unit = UNITS.get(panel.unit, (1.0, ""))
    series = [
        Series(_legend(legend or panel.title, labels), [(at - start, value * factor) for at, value in points])
        for legend, expression in panel.expressions.items()
        for labels, points in server.lines(filled(expression, WINDOW), start, end, EVERY_S)
    ]
    if panel.stacked:
        times = sorted({at for one in series for at, _ in one.points})
        series = [Series(one.name, [(at, dict(one.points).get(at, 0.0)) for at in times]) for one in series]
    return Chart(panel.title, unit, series, "stack" if panel.stacked else "line")


def _legend(template: str, labels: dict[str, str]) -> str:
    """Grafana's legend with its labels filled in."""
    text = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), template)
    return text if len(text) <= NAMED else f"{text[: NAMED - 1]}…"


def _picture(name: str, board: Dashboard, charts: list[Chart], command: str) -> str:
    """The whole dashboard as one SVG file."""
    width = COLUMNS * (CARD_WIDTH + GAP) + GAP
    height = HEAD + -(-len(charts) // COLUMNS) * (CARD_HEIGHT + GAP)
    style = resources.files("triptych.observe.report").joinpath("page.css").read_text(encoding="utf-8")
    reasons = {title: reason for (of, title, *_), reason in (WITHOUT | OF_EXAMPLE).items() if of == name}
    cards = "".join(_card(index, chart, reasons.get(chart.title, "")) for index, chart in enumerate(charts))
    note = (
        "The panels of the Grafana dashboard (this is not Grafana), drawn by tests/deploy/pictures.py "
        f"from what Prometheus scraped during {command}; seconds since its start."
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<style><![CDATA[{style} text {{ font-family: system-ui, sans-serif; fill: var(--text); }}]]></style>"
        f'<rect width="{width}" height="{height}" style="fill:var(--bg)"/>'
        f'<text x="{GAP}" y="40" font-size="24" font-weight="600">{escape(board.title)}</text>'
        f'<text x="{GAP}" y="64" font-size="13" style="fill:var(--soft)">{escape(note)}</text>{cards}</svg>\n'
    )


def _card(index: int, chart: Chart, reason: str) -> str:
    row, column = divmod(index, COLUMNS)
    x, y = GAP + column * (CARD_WIDTH + GAP), HEAD + row * (CARD_HEIGHT + GAP)
    title = f'<text x="{GAP}" y="24" font-size="14" font-weight="600">{escape(chart.title)}'
    title += f'<tspan dx="8" font-weight="400" style="fill:var(--soft)">{escape(chart.note)}</tspan></text>'
    if chart.series:
        place = f'<svg x="{GAP}" y="34" width="{svg.WIDTH}" height="{svg.HEIGHT}" '
        inner = svg.draw(chart).replace("<svg ", place, 1) + _legends(chart)
    else:
        text = escape("No data" + (f": {reason}" if reason else ""))
        inner = f'<text class="tick" x="{CARD_WIDTH / 2}" y="{CARD_HEIGHT / 2}" text-anchor="middle">{text}</text>'
    card = f'<rect width="{CARD_WIDTH}" height="{CARD_HEIGHT}" rx="10" style="fill:var(--card);stroke:var(--line)"/>'
    return f'<g transform="translate({x} {y})">{card}{title}{inner}</g>'


def _legends(chart: Chart) -> str:
    """Names under the chart, as many as there is room for."""
    x, row, parts = float(GAP), 0, []
    for index, one in enumerate(chart.series):
        wide = 24 + sum(7.8 if letter.isupper() or letter == "_" else 6.4 for letter in one.name)
        if x > GAP and x + wide > CARD_WIDTH:
            x, row = float(GAP), row + 1
        if row == LEGEND:
            break
        y = 34 + svg.HEIGHT + 12 + row * LINE
        color = f"fill:var(--c{index % svg.COLORS})"
        parts.append(f'<rect x="{x:.0f}" y="{y - 9}" width="10" height="10" rx="3" style="{color}"/>')
        parts.append(f'<text class="tick" x="{x + 15:.0f}" y="{y}">{escape(one.name)}</text>')
        x += wide
    return "".join(parts)


def _screenshot(page: Path, picture: Path) -> None:
    program = shutil.which("chromium") or sys.exit("error: chromium is not installed")
    with tempfile.TemporaryDirectory() as profile:
        words = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,4000",
                 f"--user-data-dir={profile}", f"--screenshot={picture}", page.as_uri()]  # fmt: skip
        subprocess.run(words, check=True, capture_output=True, timeout=90)


if __name__ == "__main__":
    main()
