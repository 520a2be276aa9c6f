"""What the README tells people to type works, and it names every verb."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from triptych.cli import app
from triptych.recipe import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRIPTYCH = Path(sys.executable).parent / "triptych"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def parse(arguments: list[str]) -> None:
    """Parse a command line down to its last verb, without running it; typer's usage errors are raised."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("triptych", arguments)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def test_there_are_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_well_formed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_ADDRESS", "http://127.0.0.1:8265")  # as the README exports it
    program, *arguments = shlex.split(line, comments=True)
    if Path(program).name == "triptych":
        parse(arguments)
    elif program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program == "source":  # the shell's own
        assert arguments == [".venv/bin/activate"]
    elif program == "export":
        assert all("=" in word for word in arguments)
    else:
        assert program.startswith(".venv/bin/") or shutil.which(program), f"no program {program}"
    for name in arguments:
        if name.startswith(("examples/", "requirements/")):
            assert (ROOT / name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("triptych plan ")])
def test_plan_runs(line: str) -> None:
    done = subprocess.run(
        [TRIPTYCH, *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_recipe_is_valid(tmp_path: Path) -> None:
    text, goes_on = blocks("yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    assert list(recipe.stages) == ["sft", "reward", "ppo"]
    path.write_text(f"name: films\nmodel: {{base: smollm2-135m-instruct}}\n{goes_on}", encoding="utf-8")
    assert load_recipe(path).stages["more"].inherited == ("method",)


def test_python_compiles() -> None:
    for source in blocks("python"):
        compile(source, "README.md", "exec")


def test_every_verb_is_described() -> None:
    verbs = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    described = set(re.findall(r"^\| `triptych ([a-z]+)", README, flags=re.MULTILINE))
    assert described == verbs


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
