"""The example of methods plans with every one of them, and its pages are what its results give."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from triptych.methods import METHODS
from triptych.plan import Machine, Node, estimate
from triptych.plan.machines import GIB
from triptych.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "methods" / "recipe.yaml"
LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * GIB),))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "bench")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_plans(bench: None, name: str) -> None:
    from methods.settings import EXTRAS

    method: dict[str, object] = {"name": name, **EXTRAS.get(name, {})}
    recipe = load_recipe(RECIPE, [f"stages.sft.method={yaml.safe_dump(method, default_flow_style=True).strip()}"])
    planned = estimate(recipe, machine=LAPTOP).stages["sft"]
    assert planned.roles["policy"].peak_bytes > 0


def test_commands_of_the_readme_name_recipes_that_load() -> None:
    text = (RECIPE.parent / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) >= 3
    for program, _, path, *arguments in commands:
        assert program == "triptych"
        overrides = [value for flag, value in zip(arguments[::2], arguments[1::2], strict=True) if flag == "--set"]
        assert load_recipe(ROOT / path, overrides).stages["sft"].kind == "sft"


def test_tables_and_plots_are_those_of_the_results() -> None:
    bench = ROOT / "tests" / "bench"
    done = subprocess.run(
        [sys.executable, "-m", "methods.table", "--check"],
        env=os.environ | {"PYTHONPATH": str(bench)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_row_is_filled_level_by_level_then_seed_by_seed(bench: None) -> None:
    from methods.cells import Cell, Key, Results
    from methods.tasks import TASKS

    cells: list[Cell] = []
    order = []
    losses = {("gsm8k", 0): 3.0, ("gsm8k", 1): 1.0, ("gsm8k", 2): 2.0}
    while key := next(Results(cells, "gsm8k", TASKS["gsm8k"], "d").missing("lora", 3), None):
        order.append((key.level, key.seed))
        error = "no memory" if key.level == 2 else None
        figures = {} if error else {"loss": losses["gsm8k", key.level] + key.seed}
        cells.append(Cell("gsm8k", "lora", key.level, key.seed, figures=figures, error=error, digest="d"))
    assert order == [(0, 0), (1, 0), (2, 0), (1, 1), (1, 2)]
    found = Results(cells, "gsm8k", TASKS["gsm8k"])
    assert [cell.figures["loss"] for cell in found.at_best("lora")] == [1.0, 2.0, 3.0]
    other = Results(cells, "gsm8k", TASKS["gsm8k"], "other rows")
    assert next(other.missing("lora", 3)) == Key("gsm8k", "lora", 0, 0), "figures of other rows do not count"
    assert [key.arm for key in found.missing_beside("lora", 3)] == ["peft"] * 3


def test_methods_are_timed_in_pairs_whose_order_turns_around(bench: None) -> None:
    from methods.cells import Cell, Results
    from methods.tasks import TASKS

    cells = [Cell("sst2", "lora", level, 0, figures={"accuracy": 0.5}, digest="d") for level in range(3)]
    order = []
    while key := next(Results(cells, "sst2", TASKS["sst2"], "d").missing_timed("lora", 2, beside_peft=True), None):
        order.append((key.seed, key.arm))
        cells.append(Cell("sst2", "lora", key.level, key.seed, key.arm, digest="d"))
    assert order == [(0, "triptych, timed"), (0, "peft, timed"), (1, "peft, timed"), (1, "triptych, timed")]


def test_pages_show_what_there_is(bench: None, tmp_path: Path) -> None:
    from methods.cells import Cell, write
    from methods.table import BEGIN, END, publish

    def cell(method: str, level: int, seed: int, accuracy: float, arm: str = "triptych") -> Cell:
        figures = {"accuracy": accuracy, "trainable": 10.0 ** (4 + level), "peak GB": 1.5, "step s": 0.25}
        facts = {"digest": "d", "code": "abc", "machine": {"cpu": "A <CPU>", "cores": 2}}
        return Cell("sst2", method, level, seed, arm, [1e-3], figures, **facts)  # type: ignore[arg-type]

    cells = [cell("lora", level, 0, 0.8 + 0.01 * level) for level in range(3)]
    cells += [cell("ia3", level, 0, 0.9 - 0.01 * level) for level in range(3)]
    cells += [cell("lora", 2, 1, 0.9), cell("lora", 2, 0, 0.7, "peft")]
    cells += [cell("lora", 2, 0, 0.0, f"{arm}, timed") for arm in ("triptych", "peft")]
    write(tmp_path / "results.json", cells)
    (tmp_path / "README.md").write_text(f"Before\n{BEGIN}\nold\n{END}\nafter\n")
    publish(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("Before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| lora | 1,000,000 | 0.860 (0.820 - 0.900) | – | – | – | 0.001 | 1.50 | 0.25 |" in text
    assert "| ia3 | 10,000 | 0.900 | – |" in text
    assert "| full | – | – | – | – | – | – | – | – |" in text
    assert "| lora | peft | 0.700 | 0.250 | 1.50 |" in text
    for name in ("parameters.svg", "memory.svg"):
        names = [node.text for node in ElementTree.parse(tmp_path / name).iter("{http://www.w3.org/2000/svg}text")]
        assert {"lora", "ia3"} < set(names)
