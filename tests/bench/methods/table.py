"""The table and the plots of examples/methods, from its results.json.

    PYTHONPATH=tests/bench .venv/bin/python -m methods.table [--check]

`--check` writes nothing; exit code 1 where a file is not what the results give.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from methods.cells import OURS, TIMED, Cell, Results, read
from methods.plot import Dot, scatter
from methods.settings import FIRST, HYBRIDS
from methods.tasks import TASKS

EXAMPLE = Path(__file__).parents[3] / "examples" / "methods"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOTHING = "–"
COST = "sst2"
"""The task whose memory, time and plots are shown."""
PLOTS = {"trainable": "parameters.svg", "peak GB": "memory.svg"}


def publish(folder: Path = EXAMPLE) -> None:
    """Write the README's table and the plots anew."""
    for path, text in pages(folder).items():
        path.write_text(text, encoding="utf-8")


def pages(folder: Path) -> dict[Path, str]:
    """What each file holds, if it is what the results give."""
    cells = read(folder / "results.json")
    results = {data: Results(cells, data, task) for data, task in TASKS.items()}
    readme = folder / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    dots = _dots(results)
    shown = "\n".join(f"![{name}]({file})" for name, file in PLOTS.items()) if dots["trainable"] else ""
    parts = [_table(results), shown, _beside(results), _origin(cells)]
    text = "\n\n".join(part for part in parts if part)
    found = {readme: f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"}
    if shown:
        title = TASKS[COST].title
        x_titles = {"trainable": "trainable parameters, the head apart", "peak GB": "peak memory of training, GB"}
        for name, file in PLOTS.items():
            plot = scatter(f"{title} against {name}", x_titles[name], "accuracy", dots[name], log=name == "trainable")
            found[folder / file] = plot
    return found


def _methods(results: dict[str, Results]) -> list[str]:
    """The rows: those that are to be measured first, and all others that were measured."""
    measured = (key.method for found in results.values() for key in found.cells)
    return list(dict.fromkeys([*FIRST, *HYBRIDS, *measured]))


def _table(results: dict[str, Results]) -> str:
    heads = ["method", "trainable", *(task.title for task in TASKS.values()), "learning rate", "peak GB", "s a step"]
    rows = []
    for method in _methods(results):
        cost = results[COST].at_best(method)
        trained = cost or next((found for r in results.values() if (found := r.at_best(method))), [])
        rows.append(
            [
                method,
                f"{trained[0].figures['trainable']:,.0f}" if trained else NOTHING,
                *(_spread(results[data].at_best(method), task.figure) for data, task in TASKS.items()),
                ", ".join(f"{rate:g}" for rate in cost[0].learning_rate) if cost else NOTHING,
                _median(cost, "peak GB", 2),
                _median(results[COST].at_best(method, TIMED[OURS]), "step s", 2),
            ]
        )
    return _markdown(heads, rows)


def _beside(results: dict[str, Results]) -> str:
    """Ours against peft's: what they reach from the same seeds, and steps timed in turn."""
    rows = []
    for method in _methods(results):
        reached, timed = ([results[COST].at_best(method, arm) for arm in arms] for arms in (TIMED, TIMED.values()))
        if not all(reached):
            continue
        for arm, cells, times in zip(("Triptych", "peft"), reached, timed, strict=True):
            memory = _median(cells, "peak GB", 2)
            rows.append([method, arm, _spread(cells, TASKS[COST].figure), _spread(times, "step s"), memory])
    heads = ["method", "implementation", TASKS[COST].title, "s a step", "peak GB"]
    return f"Triptych and peft's own implementation, same rows and seeds:\n\n{_markdown(heads, rows)}" if rows else ""


def _origin(cells: Sequence[Cell]) -> str:
    machines = {f"{cell.machine['cpu']}, {cell.machine['cores']} cores" for cell in cells}
    codes = list(dict.fromkeys(cell.code for cell in cells if cell.code))
    if not cells:
        return ""
    failed = [f"`{cell.method}` on {cell.data}: {cell.error}" for cell in cells if cell.error]
    lines = [f"{len(cells)} cells, measured on {'; '.join(sorted(machines))}; code {', '.join(codes)}."]
    return "\n\n".join([*lines, *([f"Without figures: {'; '.join(failed)}."] if failed else [])])


def _dots(results: dict[str, Results]) -> dict[str, list[Dot]]:
    found: dict[str, list[Dot]] = {name: [] for name in PLOTS}
    for method in _methods(results):
        if not (cells := results[COST].at_best(method)):
            continue
        values = [cell.figures[TASKS[COST].figure] for cell in cells]
        for name, dots in found.items():
            x = statistics.median(cell.figures[name] for cell in cells)
            dots.append(Dot(method, x, min(values), statistics.mean(values), max(values)))
    return found


def _spread(cells: Sequence[Cell], figure: str) -> str:
    """Mean over seeds (least - greatest)."""
    values = [cell.figures[figure] for cell in cells]
    if not values:
        return NOTHING
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} - {max(values):.3f})"


def _median(cells: Sequence[Cell], figure: str, digits: int) -> str:
    return f"{statistics.median(cell.figures[figure] for cell in cells):.{digits}f}" if cells else NOTHING


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        return publish()
    stale = [path.name for path, text in pages(EXAMPLE).items() if not path.is_file() or path.read_text() != text]
    if stale:
        sys.exit(f"{', '.join(stale)}: not what results.json gives; run `python -m methods.table`")
    return None


if __name__ == "__main__":
    main()
