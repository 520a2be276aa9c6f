"""The film-review example from data to served adapters, as a person would type it.

Every step is a command of the command line; each is printed before it runs. Run again, it goes on where it stopped.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
DATA = HERE / "data"
RECIPE = HERE / "recipe.yaml"
SERVE = HERE / "serve.yaml"
RUNS = "runs"

# The same path with few steps.
QUICK = (
    "name=reviews-quick",
    "stages.sft.data.train.limit=96",
    "stages.sft.data.heldout.limit=16",
    "stages.reward.data.train.limit=64",
    "stages.reward.data.heldout.limit=32",
    "stages.ppo.train.steps=2",
    "stages.ppo.rollout.prompts_per_step=4",
    "stages.ppo.train.checkpoint_every=1",
)
ASKED = (
    "Tell me in one sentence what you thought of the picture.",
    "How would you sum up tonight's screening in one sentence?",
    "Say something about the sequel.",
)

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=("full", "quick"), default="full")
    parser.add_argument("--metrics-port", help="port that Prometheus may ask while a recipe runs or is served")
    options = parser.parse_args()
    quick = options.profile == "quick"
    metrics = ("--metrics-port", options.metrics_port) if options.metrics_port else ()
    name = "reviews-quick" if quick else "reviews"
    started = time.monotonic()

    if not (DATA / "sft.train.jsonl").is_file():
        command(sys.executable, str(HERE / "prepare.py"))
    overrides = [word for override in (QUICK if quick else ()) for word in ("--set", override)]
    command("triptych", "run", str(RECIPE), *overrides, *metrics)
    command("triptych", "runs", "report", name)
    key = command("triptych", "keys", "create", "--label", "demo", capture=True).strip()
    console.print(f"API key, shown once: [bold]{key}[/bold]")
    with endpoint(metrics) as url:
        ask(openai.OpenAI(base_url=url, api_key=key), name)
    show_measured(name)
    console.print(f"done in {time.monotonic() - started:.0f} s; serve it with: triptych serve {SERVE}")


def command(*words: str, capture: bool = False) -> str:
    """Run one command; its output is shown, or returned."""
    console.rule(" ".join(Path(word).name if word == sys.executable else word for word in words), align="left")
    with subprocess.Popen(_found(words), text=True, stdout=subprocess.PIPE if capture else None) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:  # the command got it too, and says how to go on
            sys.exit(process.wait())
    if process.returncode:
        sys.exit(process.returncode)
    return output or ""


@contextmanager
def endpoint(more: tuple[str, ...]) -> Iterator[str]:
    """`triptych serve` on a free port with `more` options, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("triptych", "serve", str(SERVE), "--port", str(port), *more)
    console.rule(" ".join(words), align="left")
    with subprocess.Popen(_found(words), stdout=subprocess.PIPE, text=True) as server:
        if server.stdout is None:
            raise RuntimeError("the server has no output")
        try:
            for line in server.stdout:
                console.print(line.rstrip())
                if line.startswith("serving at "):
                    yield line.split()[-1]
                    return
            sys.exit(server.wait())
        finally:
            server.terminate()


def ask(client: openai.OpenAI, name: str) -> None:
    """The same questions to the base and to both adapters, side by side."""
    models = ["smollm2-135m-instruct", f"{name}-sft", f"{name}-ppo"]
    table = Table(title="The same question to the base and to both adapters", show_lines=True)
    for column in ("question", *models):
        table.add_column(column, ratio=1)
    for question in ASKED:
        messages = [{"role": "system", "content": "You are a film critic."}, {"role": "user", "content": question}]
        answers = [
            client.chat.completions.create(model=model, messages=messages, max_tokens=48, seed=1)  # type: ignore[arg-type]
            for model in models
        ]
        table.add_row(question, *(str(answer.choices[0].message.content) for answer in answers))
    console.print(table)


def show_measured(name: str) -> None:
    """Held-out answers before and after PPO."""
    stages = Path(RUNS, name, "stages")
    before, after = (
        json.loads((stages / "ppo/evaluations" / f"{label}.json").read_text()) for label in ("before", "after")
    )
    reward = json.loads((stages / "reward/summary.json").read_text())["metrics"]
    console.print(f"reward model: {reward['heldout_accuracy']:.3f} of held-out pairs ranked right")
    table = Table(title="Sampled answers to held-out prompts")
    for column in ("", "SFT", "after PPO"):
        table.add_column(column, justify="left" if not column else "right")
    for name in before:
        if name != "intervals":
            table.add_row(name.removeprefix("heldout_"), measured(before, name), measured(after, name))
    console.print(table)


def measured(figures: dict[str, Any], name: str) -> str:
    """A figure, and where it has one its interval of 95 %."""
    low, high = figures["intervals"].get(name, (None, None))
    return f"{figures[name]:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def _found(words: tuple[str, ...]) -> list[str]:
    """`triptych` is the one beside this interpreter, installed in the same environment."""
    return [str(Path(sys.executable).parent / "triptych") if word == "triptych" else word for word in words]


if __name__ == "__main__":
    os.chdir(HERE.parents[1])
    main()
