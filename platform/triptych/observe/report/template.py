"""Rendering shared by all HTML pages: escaping, style, script, version and time."""

from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from triptych import __version__
from triptych.observe.report import svg

_ASSETS = files("triptych.observe.report")


def filled(template: str, **values: Any) -> str:
    """Render a template of this folder; all values are escaped."""
    environment = Environment(
        loader=PackageLoader("triptych.observe.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(draw=svg.draw, hover=svg.hover_data, number=svg.number, colors=svg.COLORS)
    return environment.get_template(template).render(
        css=_ASSETS.joinpath("page.css").read_text(),
        js=_ASSETS.joinpath("page.js").read_text(),
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )
