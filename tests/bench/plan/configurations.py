"""What memory is measured of: methods in turn, everything else drawn by chance, always the same."""

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from triptych.recipe import Recipe
from triptych.recipe.training import StrategyName

_HERE = Path(__file__).parent
BASES = {
    "135m": "smollm2-135m-instruct",
    "350m": str(_HERE / "llama-350m"),
    "1b": str(_HERE / "llama-1b"),
}
METHODS: tuple[Any, ...] = (
    {"name": "lora", "r": 8},
    {"name": "lora", "r": 64, "targets": ["q_proj", "v_proj"]},
    {"name": "full"},
    {"name": "dora", "r": 16},
    {"name": "freeze", "layers": 4},
    {"name": "ia3"},
    {"name": "adalora"},
    {"name": "p_tuning_v2", "num_virtual_tokens": 64},
    {"name": "prompt_tuning", "num_virtual_tokens": 32},
    {"name": "houlsby"},
    {"name": "bitfit", "missing": "add"},
    {"name": "ln_tuning"},
    {"name": "vera"},
    {"name": "lokr"},
    {"name": "parallel_adapter"},
    [{"name": "prefix_tuning"}, {"name": "lora", "r": 16}],
)
ROUNDS = 5
TOKENS = {"135m": (512, 1024, 2048), "350m": (512, 1024)}
"""Of a micro-batch."""
LENGTHS = (128, 256, 512, 1024)
GPU_COUNT = 32
GPU_TOKENS = {"135m": (8192, 16384, 32768), "350m": (8192, 16384), "1b": (4096, 8192, 16384)}
GPU_LENGTHS = (256, 512, 1024, 2048)


@dataclass(frozen=True)
class Configuration:
    """One training that is measured and predicted."""

    base: str
    kind: str
    method: Any
    dtype: str
    packing: bool
    length: int
    tokens: int
    accumulated: bool
    checkpointing: str
    loss_chunk: int | None
    optimizer: str
    ranks: int
    strategy: StrategyName
    gpus: int = 0
    """Of a rank."""

    @property
    def key(self) -> str:
        """Its digest."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()[:12]

    def values(self) -> dict[str, Any]:
        """As JSON has them."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.gpus:
            del values["gpus"]
        return values

    @property
    def held_out(self) -> bool:
        """Never used for fitting: half of all, whatever else there is."""
        return int(self.key, 16) % 2 == 1

    @property
    def name(self) -> str:
        parts = self.method if isinstance(self.method, list) else [self.method]
        words = [" + ".join(part["name"] for part in parts), self.base, self.dtype, f"{self.tokens} x {self.length}"]
        words += [self.kind] * (self.kind != "sft") + ["padded"] * (not self.packing)
        words += [f"checkpointing {self.checkpointing}"] * (self.checkpointing != "none")
        words += [f"chunk {self.loss_chunk}"] * (self.kind == "sft") + [self.optimizer] * (self.optimizer != "adamw")
        return ", ".join(
            words + ["accumulated"] * self.accumulated + [f"{self.ranks} {self.strategy}"] * (self.ranks > 1)
        )

    def recipe(self) -> Recipe:
        """As a user would write it."""
        rows = self.tokens // self.length * self.ranks * (2 if self.accumulated else 1)
        stage: dict[str, Any] = {
            "kind": self.kind,
            "method": self.method,
            "data": {"train": {"path": "rows.jsonl"}},
            "train": {
                "steps": 1000,
                "optimizer": {"name": self.optimizer, "lr": 1e-6},
                "batch": {
                    "rows": rows // 2 if self.kind == "reward" else rows,
                    "max_length": self.length,
                    "micro_tokens": self.tokens,
                },
                "memory": {"checkpointing": self.checkpointing, "loss_chunk": self.loss_chunk},
                "workers": {"count": self.ranks, "strategy": self.strategy, "gpus": self.gpus},
            },
        }
        if self.kind == "classification":
            stage["labels"] = ["a", "b"]
        model = {"base": BASES[self.base], "dtype": self.dtype, "packing": self.packing}
        return Recipe.model_validate({"name": "memory", "model": model, "stages": {"stage": stage}})


def configurations() -> list[Configuration]:
    """All of them, those to be measured first at the beginning."""
    chance = random.Random(0)
    return [_on_cpu(method, chance) for _ in range(ROUNDS) for method in METHODS]


def gpu_configurations() -> list[Configuration]:
    """Those of one GPU, those to be measured first at the beginning."""
    chance = random.Random(0)
    return [_on_gpu(METHODS[number % len(METHODS)], chance) for number in range(GPU_COUNT)]


def _on_cpu(method: Any, chance: random.Random) -> Configuration:
    base = chance.choice(["135m", "135m", "350m"])
    kind = _kind(method, chance)
    ranks = chance.choice([1, 1, 1, 2])
    strategies: list[StrategyName] = ["ddp", "ddp", "fsdp"]
    strategy: StrategyName = "single" if ranks == 1 else chance.choice(strategies)
    tokens = chance.choice(TOKENS[base])
    return Configuration(
        base=base,
        kind=kind,
        method=method,
        dtype=chance.choice(["bfloat16", "bfloat16", "float32"]),
        packing=chance.choice([True, True, True, False]),
        length=chance.choice([length for length in LENGTHS if 2 * length <= tokens]),
        tokens=tokens,
        accumulated=chance.choice([False, False, False, True]),
        checkpointing=chance.choice(["none", "none", "selective", "full"]),
        loss_chunk=chance.choice([512, 128, None]),
        optimizer=chance.choice(["adamw", "adamw", "adamw", "lion", "sgd", "adamw_8bit"]),
        ranks=ranks,
        strategy=strategy,
    )


def _on_gpu(method: Any, chance: random.Random) -> Configuration:
    base = chance.choice(["135m", "350m", "1b", "1b"])
    return Configuration(
        base=base,
        kind=_kind(method, chance),
        method=method,
        dtype=chance.choice(["bfloat16"] * 7 + ["float32"]),
        packing=chance.choice([True, True, True, True, False]),
        length=chance.choice(GPU_LENGTHS),
        tokens=chance.choice(GPU_TOKENS[base]),
        accumulated=chance.choice([False, False, False, True]),
        checkpointing=chance.choice(["none", "none", "selective", "full"]),
        loss_chunk=chance.choice([2048, 512, None]),
        optimizer=chance.choice(["adamw", "adamw", "adamw", "lion", "adamw_8bit"]),
        ranks=1,
        strategy="single",
        gpus=1,
    )


def _kind(method: Any, chance: random.Random) -> str:
    whole = isinstance(method, dict) and method["name"] in ("full", "freeze")
    return "sft" if whole else chance.choice(["sft"] * 4 + ["reward", "classification"])
