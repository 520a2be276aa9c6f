"""Whole reward models of the tiny model's shape, with random weights and heads."""

import datetime
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from triptych.models.adapter import Normalization
from triptych.models.base import model_tokenizer
from triptych.models.peft_files import MODEL_WEIGHTS
from triptych.models.whole_reward import save_whole_reward
from triptych.recipe.method import Freeze, Full
from triptych.recipe.model import Model
from triptych.registry import AdapterVersion
from triptych.stages.whole_model import WholeModel

SCALE = Normalization(0.3, 0.7)
FULL = Full()


def make_whole_reward(
    folder: Path, base: Path, method: Full | Freeze = FULL, *, seed: int = 3, fingerprint: str = "tiny"
) -> WholeModel:
    """A reward model in `folder`, whose blocks, embeddings and head are others than those of every other seed."""
    drawn = torch.Generator().manual_seed(seed)
    stored = load_file(base / MODEL_WEIGHTS)
    weights = {name: one + 0.02 * torch.randn(one.shape, generator=drawn) for name, one in sorted(stored.items())}
    width = weights["model.norm.weight"].shape[0]
    head = {"weight": torch.randn(1, width, generator=drawn), "bias": torch.tensor([0.2])}
    folder.mkdir(parents=True)
    tokenizer = model_tokenizer(base, Model(base=str(base)))
    about = {"base": "tiny", "base_fingerprint": fingerprint, "stage_kind": "reward"}
    save_whole_reward(folder, base, method, weights, head, SCALE, torch.float32, tokenizer, about)
    return whole_reward_in(folder, method)


def whole_reward_in(folder: Path, method: Full | Freeze = FULL) -> WholeModel:
    """The reward model that a folder holds, as a registered version."""
    made = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    version = AdapterVersion(folder.name, 1, "reward_model", "tiny", "tiny", str(folder), "0", {}, {}, made, None)
    return WholeModel(version, method)


def plain_scores(folder: Path, sequences: list[list[int]]) -> Tensor:
    """Normalised scores [N] of transformers' own classifier, a row at a time."""
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        raw = torch.stack([classifier(input_ids=torch.tensor([ids])).logits[0, 0] for ids in sequences])
    return (raw - (SCALE.mean - 0.2)) / SCALE.std  # transformers' head has no bias: the mean has taken it in
