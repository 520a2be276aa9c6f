"""Memory of one training worker, all of whose roles share a process."""

from triptych.plan.amounts import ON_CPU, TRANSIENT, Parts, total
from triptych.plan.estimate import StageEstimate


def worker_parts(stage: StageEstimate) -> Parts:
    """On its device: what each role keeps, and what the role that needs most has while it is at work."""
    roles = [found.parts for name, found in stage.roles.items() if name != "engine"]
    kept = [(name, size) for parts in roles for name, size in parts.items() if name not in TRANSIENT]
    turns = [{name: size for name, size in parts.items() if name in TRANSIENT} for parts in roles]
    found: Parts = max(turns, key=lambda turn: total(turn.values()).expected)
    for name, size in kept:
        found = found | {name: found[name] + size if name in found else size}
    return {name: size for name, size in found.items() if not name.startswith(ON_CPU)}
