"""Algorithms of the comparison, and the work that equal time gives each."""

NAMES = {"ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "reinforce_pp": "REINFORCE++", "dpo": "DPO", "rrhf": "RRHF"}
"""Algorithm, or kind of a preference stage, and its name in the literature."""
PREFERENCES = ("dpo", "rrhf")
"""Those that learn from ranked snippets; all others sample."""
SEEDS = 3
MINUTES = 6.0
"""Time that an algorithm gets on a quiet machine."""
PACES = {"ppo": 38.1, "grpo": 22.5, "rloo": 22.2, "reinforce_pp": 21.8, "dpo": 6.4, "rrhf": 6.2}
"""Seconds of a step, measured on two cores of an AMD EPYC that did nothing else; `import torch` takes 1.4 s there.

Steps follow from them and not from a clock, so that a cell is the same on every machine and beside other work.
`python -m learning.run --pace` measures them anew.
"""
ROWS = 16
"""Prompts of a step, or pairs."""
SAMPLES = 4
"""Answers to a prompt of reinforcement learning."""
LEARNING_RATE = 3e-4


def steps_of(algorithm: str, minutes: float = MINUTES) -> int:
    """Optimiser steps of a preference stage, or steps of reinforcement learning, that the time has room for."""
    return max(1, round(60 * minutes / PACES[algorithm]))


def texts_of(algorithm: str, steps: int) -> int:
    """Answers that are sampled in so many steps, or pairs that are read."""
    return steps * ROWS * (1 if algorithm in PREFERENCES else SAMPLES)
