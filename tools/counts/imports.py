"""Modules that an RL run can load."""

from counts.source import Count, Offender, Package

RL_ENTRIES = ("stages.rl.stage", "stages.rl", "stages.ppo")
"""Where the RL stage begins, below the package; the first that exists is taken."""


def reach_count(package: Package, entry: str | None = None) -> Count:
    """Share of the package's files that imports reach from the RL stage, those in functions and of packages included.

    A share, since each algorithm, reward and engine is a file more: it tells how far the rest is kept apart.
    """
    entry = entry or next(name for below in RL_ENTRIES if (name := f"{package.name}.{below}") in package.modules)
    modules = [package.modules[name] for name in package.reached(entry)]
    lines = sum(module.lines for module in modules)
    files = sorted(Offender(module.file, 1, f"{module.lines} lines") for module in modules)
    share, detail = 100 * len(files) / len(package.modules), f"{len(files)} of {len(package.modules)}, {lines} lines"
    return Count("reach", "modules that an RL run reaches, %", round(share, 1), files, f"{detail}, from {entry}")
