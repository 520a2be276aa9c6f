"""`triptych data reasoning-gym`: rows of prompts from a task that a library makes."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def reasoning_gym(
    task: Annotated[str, typer.Argument(help="Task of reasoning-gym, such as leg_counting.")],
    out: Annotated[Path, typer.Option(help="Folder for train.jsonl and heldout.jsonl.")],
    train: Annotated[int, typer.Option(min=1, help="Rows to train on.")] = 1000,
    heldout: Annotated[int, typer.Option(min=0, help="Rows to measure on; no question is among both.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, task and settings give the same rows.")] = 0,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of the task, as min_animals=1; may be repeated.")
    ] = None,
    request: Annotated[str, typer.Option(help="Text behind each question, on a line of its own.")] = "",
) -> None:
    """Write prompts of a task of reasoning-gym, with all that `{name: reasoning_gym}` scores answers by."""
    from triptych.data.reasoning import task_rows
    from triptych.errors import UserError

    made = task_rows(task, _settings(setting or []), train=train, heldout=heldout, seed=seed, request=request)
    files = {out / "train.jsonl": made.train, out / "heldout.jsonl": made.heldout}
    if there := [path for path in files if path.exists()]:
        raise UserError(f"--out: {there[0]} is there already; name another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    for path, rows in files.items():
        if rows:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            typer.echo(f"{path}: {len(rows)} rows")


def _settings(pairs: list[str]) -> dict[str, Any]:
    import yaml

    from triptych.errors import UserError

    found = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given or not name:
            raise UserError(f"--set {pair}: it is written NAME=VALUE, as in --set max_animals=2")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {pair}: the value is no YAML: {error}") from error
    if reserved := [name for name in ("seed", "size") if name in found]:
        raise UserError(f"--set {reserved[0]}: it has an option of its own; allowed: --seed, --train, --heldout")
    return found
