"""Faults of a recipe, each with its place and a message."""

from dataclasses import dataclass

from triptych.errors import UserError
from triptych.recipe.spec import Path


@dataclass(frozen=True)
class Fault:
    """A combination of fields that cannot work, at the path of the field to change."""

    path: Path
    message: str


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `file:line: field: message`."""

    file: str | None
    line: int | str | None
    """A line of the file, counted from 1, or the override (`--set a.b=c`) that the problem comes from."""
    field: str
    """Dotted path; empty for the file as a whole."""
    message: str

    def __str__(self) -> str:
        place = self.line if isinstance(self.line, str) else ":".join(str(p) for p in (self.file, self.line) if p)
        return ": ".join(part for part in (place, self.field, self.message) if part)


class RecipeError(UserError):
    """Everything that is wrong with one file, a line each; `file`, `line`, `field` are the first problem's."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems
        self.file = problems[0].file
        self.line = problems[0].line
        self.field = problems[0].field

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)
