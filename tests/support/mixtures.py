"""The families that are mixtures of experts, each as a tiny model's folder."""

from pathlib import Path

import pytest
import torch

from tests.support.families import FAMILIES, tiny

MIXTURES = [name for name, family in FAMILIES.items() if "experts" in str(family.config)]

each_mixture = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n in ("mixtral", "qwen3_moe", "gpt_oss") else [pytest.mark.exhaustive])
        for n in MIXTURES
    ],
)


def saved(folder: Path, name: str) -> Path:
    """A tiny model of the family as a folder."""
    tiny(name, torch.float32).save_pretrained(folder / "base")
    return folder / "base"
