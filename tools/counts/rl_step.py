"""Files of the package that one RL step runs through, counted while it runs."""

import importlib
import inspect
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from counts.source import Count, Offender, Package

SUPPORT = "tests.support"
"""The tests' `rl_step.first_step(model, home)`, which makes a run ready for its first step, and `tiny_model`."""


def step_counts(package: Package, checkout: Path, tests: Path) -> list[Count]:
    """Files, and lines of these files, with a function that runs in the first step of an RL run, sync included.

    The policy is a LoRA on one rank; the engine is the tests' own, behind the pool's interface, and no part of the
    count. `tests` is the folder of tests whose support code fits the checkout's modules.
    """
    if not (tests / "support" / "rl_step.py").is_file():
        raise SystemExit(f"no support/rl_step.py in {tests}: give --tests, or --no-step")
    for folder in (checkout / "platform", tests.parent):
        sys.path.insert(0, str(folder))
    files = {str(module.path): module for module in package}
    called = [code for code in _called() if code.co_filename in files]
    ran = sorted({code.co_filename for code in called})
    offenders = [Offender(files[path].file, 1, f"{files[path].lines} lines") for path in ran]
    lines = sum(files[path].lines for path in ran)
    run_lines = len({(code.co_filename, line) for code in called for line in function_lines(code)})
    return [
        Count("step", "files that one RL step runs through", len(ran), offenders),
        Count("step-lines", "lines of these files", lines, offenders, f"{run_lines} in the {len(called)} functions"),
    ]


def _called() -> list[CodeType]:
    """The functions that the step calls. A first run imports whatever is imported late."""
    first_step: Callable[[Path, Path], Callable[[], Any]] = importlib.import_module(f"{SUPPORT}.rl_step").first_step
    make_tiny_model: Callable[[Path], Any] = importlib.import_module(f"{SUPPORT}.tiny_model").make_tiny_model
    with tempfile.TemporaryDirectory() as home:
        model = Path(home, "model")
        make_tiny_model(model)
        for name in ("first", "second"):
            step = first_step(model, Path(home, name))
            with recorded_calls() as called:
                step()
    return [code for code in called if code.co_flags & inspect.CO_OPTIMIZED]


def function_lines(code: CodeType) -> range:
    """The lines of a function."""
    last = max(line for _, _, line in code.co_lines() if line)
    return range(code.co_firstlineno, last + 1)


@contextmanager
def recorded_calls() -> Iterator[set[CodeType]]:
    """Code that is called within the block, in this thread and in those that start there."""
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
