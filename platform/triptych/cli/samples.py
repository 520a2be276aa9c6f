"""Tables of sampled answers for a terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from triptych.observe.report.samples import question

if TYPE_CHECKING:
    from triptych.observe.rollouts import SampledGroup

_LONGEST = 600
"""Characters of a prompt or an answer that are shown."""


def print_samples(title: str, groups: Sequence["SampledGroup"], shown: int) -> None:
    """The first and the last groups, which are ordered by their mean score, each answer with its score."""
    from rich.console import Console

    flat = sum(group.spread == 0 for group in groups)
    console = Console()
    console.print(f"{title}: {len(groups)} prompts, {flat} of them with equal scores", highlight=False)
    best = groups[:shown]
    worst = groups[max(shown, len(groups) - shown) :]
    for name, own in (("best", best), ("worst", worst)):
        for group in own:
            console.print(_table(f"{name}, mean {group.mean:.3g}: {_cut(question(group.prompt))}", group))


def _table(title: str, group: "SampledGroup") -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "score", "answer", "tokens", "ended", "version", title=Text(title), title_justify="left", show_lines=True
    )
    for answer in group.answers:
        numbers = (str(answer.tokens), answer.finish_reason, str(answer.version))
        table.add_row(f"{answer.score:.3g}", Text(_cut(answer.text)), *numbers)
    return table


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"
