"""Reader's view of a run's folder: its recipe, and each stage's state, metrics and files."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.observe.log import read_metrics
from triptych.observe.planned import FILE, Compared, actual_figures, compare

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class StageView:
    """One stage of a run; every part is read when it is first asked for."""

    name: str
    spec: dict[str, Any]
    """The stage's part of the resolved recipe."""
    url: str

    @property
    def kind(self) -> str:
        return str(self.spec.get("kind", "?"))

    @cached_property
    def state(self) -> dict[str, Any] | None:
        """Inputs that the stage was begun with; None before it began."""
        return _json(storage.join(self.url, "state.json"))

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """Results of the stage; None before its end."""
        return _json(storage.join(self.url, "summary.json"))

    @property
    def ending(self) -> str | None:
        """The rule that ended the stage before its last step, and why, as a sentence; None of any other stage."""
        summary = self.summary or {}
        stopped = summary.get("stopped")
        if not isinstance(stopped, dict):
            return None
        kept = f"; the weights of step {summary['best_step']} are kept" if "best_step" in summary else ""
        return f"ended at step {stopped['step']} by train.stopping.{stopped['rule']}: {stopped['why']}{kept}"

    @cached_property
    def rows(self) -> list[JsonObject]:
        """Metrics rows, by step."""
        try:
            return read_metrics(self.url)
        except ValueError as error:
            raise RunError(f"{self.url}/metrics is damaged: {error}") from error

    @cached_property
    def samples(self) -> dict[str, list[JsonObject]]:
        """Label (`before`, `after`) -> rows of prompt, response, reward, judge."""
        url = storage.join(self.url, "samples")
        return {_stem(name): _json_lines(storage.join(url, name)) for name in storage.list_files(url)}

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Label -> what was measured on held-out rows: `before`, `after` (PPO), `reward` (a reward model's report)."""
        url = storage.join(self.url, "evaluations")
        found = {_stem(name): _json(storage.join(url, name)) for name in storage.list_files(url)}
        return {label: metrics for label, metrics in found.items() if metrics}

    @cached_property
    def ranks(self) -> dict[str, Any] | None:
        """Role -> module -> its rank at the end; None if ranks were not adapted."""
        return _json(storage.join(self.url, "ranks.json"))

    @cached_property
    def plan(self) -> dict[str, Any] | None:
        """Figures `predicted` for the stage, and `actual` ones; None if the stage has no plan."""
        plan = _json(storage.join(self.url, FILE))
        return None if plan is None else {"actual": actual_figures(self.rows)} | plan

    @property
    def compared(self) -> list[Compared]:
        """Predicted figures beside measured ones; empty if the stage has no plan."""
        return [] if self.plan is None else compare(self.plan["predicted"], self.plan["actual"])

    @property
    def status(self) -> str:
        """`done`, `step N`, `begun` or `waiting`."""
        if self.summary is not None:
            return "done"
        committed = storage.list_committed(storage.join(self.url, "checkpoints"))
        if committed:
            return f"step {int(committed[-1].removeprefix('step-'))}"
        return "waiting" if self.state is None else "begun"


@dataclass(frozen=True)
class RunView:
    """One run."""

    name: str
    url: str
    recipe_text: str

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain data."""
        content = yaml.safe_load(self.recipe_text)
        if not isinstance(content, dict):
            raise RunError(f"{self.url}/recipe.yaml is damaged: not a mapping")
        return content

    @cached_property
    def stages(self) -> list[StageView]:
        """The recipe's stages in its order."""
        specs: dict[str, dict[str, Any]] = self.recipe.get("stages") or {}
        return [StageView(name, spec, storage.join(self.url, "stages", name)) for name, spec in specs.items()]


def read_run(url: str) -> RunView:
    """The run in a folder; UserError where there is none."""
    recipe = storage.join(url, "recipe.yaml")
    if not storage.exists(recipe):
        raise UserError(f"{url} is not a run: it has no recipe.yaml")
    return RunView(url.rstrip("/").rsplit("/", 1)[-1], url, storage.read_bytes(recipe).decode())


def list_runs(runs: str) -> list[RunView]:
    """All runs in a folder, by name."""
    urls = (storage.join(runs, name) for name in storage.list_folders(runs))
    return [read_run(url) for url in urls if storage.exists(storage.join(url, "recipe.yaml"))]


def find_run(runs: str, name: str) -> RunView:
    """A run by its name; UserError with near names where there is none."""
    url = storage.join(runs, name)
    if storage.exists(storage.join(url, "recipe.yaml")):
        return read_run(url)
    names = [run.name for run in list_runs(runs)]
    near = difflib.get_close_matches(name, names, n=3) or names[:10]
    raise UserError(f"no run {name!r} in {runs}" + (f"; there is {', '.join(near)}" if near else ", and no other"))


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _json(url: str) -> dict[str, Any] | None:
    if not storage.exists(url):
        return None
    return next(_parsed(url, [storage.read_bytes(url)]))


def _json_lines(url: str) -> list[JsonObject]:
    return list(_parsed(url, [line for line in storage.read_bytes(url).split(b"\n") if line.strip()]))


def _parsed(url: str, texts: list[bytes]) -> Iterator[JsonObject]:
    for text in texts:
        try:
            content = json.loads(text)
        except ValueError as error:
            raise RunError(f"{url} is damaged: {error}") from error
        if not isinstance(content, dict):
            raise RunError(f"{url} is damaged: not an object")
        yield content
