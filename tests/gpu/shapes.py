"""Models with random weights, and rows of random tokens: nothing is read from a file or a network."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from triptych.data.batches import packed_micro_batches
from triptych.forward.roles import RoleModel
from triptych.models.sizes import Sizes, read_config, sizes_of
from triptych.recipe import Full, Lora, Method, Model, Optimizer
from triptych.train.batch import Batch, language_batch
from triptych.train.learner import Learner
from triptych.train.tasks.language import LanguageModeling

Row = tuple[list[int], list[int]]
"""Tokens, and labels: -100 where nothing is learned."""

METHODS: dict[str, Lora | Full] = {"lora": Lora(r=8, alpha=16), "full": Full(name="full")}
OBJECTIVE = LanguageModeling("policy")
ROWS = 32
"""Of one optimiser step."""
PAD = 0


@dataclass(frozen=True)
class Shape:
    """A Llama without its weights."""

    name: str
    config: dict[str, Any]
    longest: int
    """Tokens of the longest row that it is trained on."""

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.config, self.name)


_BILLION = read_config(Model(base=str(Path(__file__).parents[1] / "bench" / "plan" / "llama-1b")))
_TINY = _BILLION | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # larger than usual: differences between logits become visible
}
TINY = Shape("tiny", _TINY, 64)
SHAPES = {
    "tiny": TINY,
    "135m": Shape("135m", read_config(Model(base="smollm2-135m-instruct")), 1024),
    "1b": Shape("1b", _BILLION, 1024),
}


@dataclass(frozen=True)
class Setup:
    """What is checked, and on what."""

    device: torch.device
    shapes: tuple[Shape, ...]
    """The first is what every strategy and optimizer is checked with; speed and memory are measured of all."""
    tiny: Path
    """A Hugging Face folder: of what properties are checked with."""
    rounds: int
    steps: int
    """Of the comparison of speed."""


def make_base(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, the same each time."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            base = LlamaForCausalLM(LlamaConfig(**shape.config, use_cache=False, attn_implementation="sdpa"))
    finally:
        torch.set_default_dtype(before)
    return base.eval()


def save_tiny(folder: Path) -> Path:
    """The tiny shape as a Hugging Face folder; its weights are the same in bfloat16 and wider."""
    make_base(TINY, torch.device("cpu"), torch.float32).bfloat16().float().save_pretrained(folder)
    return folder


def make_model(shape: Shape, method: Method, device: torch.device, dtype: torch.dtype, **levers: Any) -> RoleModel:
    """The role `policy` on a base of `dtype`, or in float32 where the base is trained; computed in `dtype`."""
    full = isinstance(method, Full)
    model = RoleModel(make_base(shape, device, torch.float32 if full else dtype), dtype, **levers)
    add_policy(model, method)
    return model


def add_policy(model: RoleModel, method: Method) -> None:
    model.add("policy", method, trainable=True)


def make_learner(model: RoleModel, optimizer: Optimizer | None = None, **settings: Any) -> Learner:
    return Learner(model, {"policy": optimizer or Optimizer(lr=1e-4)}, {"policy": 1000}, **settings)


def random_rows(shape: Shape, count: int) -> list[Row]:
    """Lengths as chats have them, log-normal about a quarter of the longest; the last two thirds are learned."""
    chance = random.Random(0)
    lengths = [min(max(int(shape.longest / 4 * chance.lognormvariate(0, 0.7)), 8), shape.longest) for _ in range(count)]
    return [random_row(shape, length, length // 3, chance) for length in lengths]


def random_row(shape: Shape, length: int, unlearned: int, chance: random.Random) -> Row:
    ids = [chance.randrange(1, shape.config["vocab_size"]) for _ in range(length)]
    return ids, [-100] * unlearned + ids[unlearned:]


def batches_of(rows: Sequence[Row], micro_tokens: int) -> list[Batch]:
    """The micro-batches of one step, as the stages cut them."""
    cut = packed_micro_batches([[ids] for ids, _ in rows], micro_tokens, 1)[0]
    return [language_batch([rows[index] for index in micro], PAD) for micro in cut]
