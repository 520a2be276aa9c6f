"""Measure how hard it is to find one's way in the package, as a table and as JSON.

    python tools/structure.py                            the table of this checkout
    python tools/structure.py --offenders fields kinds   and every line that two of the counts counted
    python tools/structure.py --checkout DIR --json OUT  of another checkout, an earlier revision for example
    python tools/structure.py --tests DIR                with one RL step, driven by the support code of these tests

Each count's rule stands in the docstring of its function in `tools/counts`.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from counts.docstrings import docstring_count
from counts.fields import field_count
from counts.imports import reach_count
from counts.kinds import kind_check_count, touched_count
from counts.names import meeting_count, shared_name_count
from counts.rl_step import step_counts
from counts.source import Count, Package

HERE = Path(__file__).resolve().parents[1]
KEYS = ("step", "step-lines", "reach", "kinds", "touched", "names", "meetings", "docstrings", "fields")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=HERE, help="checkout to measure (default: this one)")
    parser.add_argument(
        "--tests", type=Path, metavar="DIR", help="tests whose RL step is run (default: the checkout's)"
    )
    parser.add_argument("--no-step", action="store_true", help="leave out the counts that run an RL step (a minute)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all counts and offenders to this file")
    parser.add_argument(
        "--offenders", nargs="*", choices=KEYS, metavar="COUNT", help=f"list what was counted: {', '.join(KEYS)} (all)"
    )
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    counts = measure(checkout)
    if not options.no_step:
        counts = step_counts(Package(checkout), checkout, (options.tests or checkout / "tests").resolve()) + counts
    if options.offenders is not None:
        show_offenders(counts, options.offenders or KEYS)
    show(counts)
    if options.json:
        options.json.write_text(json.dumps([asdict(count) for count in counts], indent=1) + "\n")


def measure(checkout: Path) -> list[Count]:
    """All counts of a checkout, in the order of the table."""
    package = Package(checkout)
    of_package = (reach_count, kind_check_count, touched_count, shared_name_count, meeting_count, docstring_count)
    return [*(count(package) for count in of_package), field_count(checkout)]


def show(counts: list[Count]) -> None:
    """The table."""
    table = Table("count", "", "value", "detail")
    for count in counts:
        table.add_row(count.key, count.name, f"{count.value:g}", count.detail)
    Console().print(table)


def show_offenders(counts: list[Count], keys: tuple[str, ...] | list[str]) -> None:
    """One line of `file:line: text` for each, unstyled and unwrapped, so that editors and grep can read it."""
    for count in counts:
        if count.key in keys:
            print(f"{count.name}:")
            for offender in count.offenders:
                print(f"  {offender}")


if __name__ == "__main__":
    main()
