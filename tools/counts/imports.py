"""Modules that an RL run can load."""

from counts.source import Count, Offender, Package

RL_ENTRIES = ("stages.rl.stage", "stages.rl", "stages.ppo")
"""Where the RL stage begins, below the package; the first that exists is taken."""


def reach_count(package: Package, entry: str | None = None) -> Count:
    """Files of the package reached by imports from the RL stage, those inside functions and of packages included."""
    entry = entry or next(name for below in RL_ENTRIES if (name := f"{package.name}.{below}") in package.modules)
    modules = [package.modules[name] for name in package.reached(entry)]
    lines = sum(module.lines for module in modules)
    files = sorted(Offender(module.file, 1, f"{module.lines} lines") for module in modules)
    return Count("reach", "modules that an RL run reaches", len(files), files, f"{lines} lines, from {entry}")
