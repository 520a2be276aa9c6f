"""Training speed of this machine, measured once: rates fitted to the times of short steps of small random models."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.errors import RunError
from triptych.measure.dry_run import dry_run, random_base
from triptych.models.sizes import model_sizes
from triptych.plan.processor import cpu_flags, emulates_bfloat16
from triptych.plan.rates import CPU, Costs, Rates, keep_rates, kept_rates
from triptych.plan.workload import AMOUNTS, Computation, Micro, Workload
from triptych.recipe import Recipe
from triptych.recipe.work_shape import ANSWER_SHARE, MicroBatch
from triptych.train.allocator import allocator_variables

DTYPES = ("float32", "bfloat16")
_REPEATS = 3
_TRUST = 0.03
"""Weight of each assumed cost in the fit, in measurements."""


@dataclass(frozen=True)
class Case:
    """A step to measure, of a Llama-shaped model with two blocks."""

    tokens: int
    length: int
    hidden: int = 576
    vocab: int = 2048
    method: dict[str, Any] = field(default_factory=lambda: {"name": "lora", "r": 8})
    checkpointing: str = "none"

    def recipe(self, folder: Path, dtype: str) -> Recipe:
        """A recipe of one SFT stage on such a model, whose config.json is put into the folder."""
        config = {
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": 64 * round(self.hidden / 24),
            "num_hidden_layers": 2,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 192 or 1,
            "tie_word_embeddings": True,
        }
        (folder / "config.json").write_text(json.dumps(config))
        batch = {"rows": self.tokens // self.length, "micro_tokens": self.tokens, "max_length": self.length}
        stage = {
            "kind": "sft",
            "method": self.method,
            "data": {"train": {"path": "none.jsonl"}},
            "train": {"steps": 1, "batch": batch, "memory": {"checkpointing": self.checkpointing}},
        }
        model = {"base": str(folder), "dtype": dtype}
        return Recipe.model_validate({"name": "speed", "model": model, "stages": {"only": stage}})


CASES = (
    Case(16, 16),
    Case(64, 64),
    Case(256, 64),
    Case(1024, 64),
    Case(1024, 1024),
    Case(512, 128, method={"name": "lora", "r": 64}),
    Case(512, 512, checkpointing="full"),
    Case(256, 128, method={"name": "ln_tuning"}),
    Case(256, 128, method={"name": "full"}),
    Case(512, 256, vocab=49152),
    Case(256, 128, hidden=1152),
    Case(64, 64, hidden=1152, method={"name": "full"}),
)


def measure_rates(cases: Sequence[Case] = CASES, dtypes: Sequence[str] = DTYPES) -> Rates:
    """Measure this machine's processor, about half a minute, and keep the rates in the cache folder."""
    cores = len(os.sched_getaffinity(0))
    with _threads(1):
        costs: dict[str, Costs] = {}
        for dtype in dtypes:
            costs[dtype] = _costs(cases, dtype, costs)
        alone = measure(cases[-1], dtypes[0])[1]
    with _threads(cores):
        together = measure(cases[-1], dtypes[0])[1]
    rates = Rates({**CPU.costs, **costs}, {1: 1.0} | ({cores: max(1.0, alone / together)} if cores > 1 else {}))
    keep_rates(rates)
    return rates


def _costs(cases: Sequence[Case], dtype: str, known: Mapping[str, Costs]) -> Costs:
    if dtype == "bfloat16" and "float32" in known and emulates_bfloat16(cpu_flags()):
        return _emulated(known["float32"])
    return _fit([measure(case, dtype) for case in cases], CPU.costs[dtype])


def _emulated(native: Costs) -> Costs:
    """Costs in an emulated bfloat16: those in float32, with products slower as one small product is.

    The cases themselves would take a quarter of an hour.
    """
    slower = _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)
    return dict(native) | {name: native[name] * slower for name in ("product_flops", "attention_flops")}


def _product_seconds(dtype: torch.dtype) -> float:
    rows, weight = torch.randn(64, 576).to(dtype), torch.randn(576, 576).to(dtype)
    seconds = []
    for _ in range(1 + _REPEATS):  # the first one sets up
        started = time.process_time()
        rows @ weight
        seconds.append(time.process_time() - started)
    return min(seconds[1:])


def measure_apart() -> Rates:
    """`measure_rates` in a process whose allocator is set as those of workers are."""
    command = [sys.executable, "-m", "triptych.measure.machine_speed"]
    done = subprocess.run(command, env=os.environ | allocator_variables(), capture_output=True, text=True)
    rates = kept_rates()
    if done.returncode or rates is None:
        raise RunError(f"this machine's speed could not be measured: {done.stderr.strip()[-500:]}")
    return rates


def measure(case: Case, dtype: str) -> tuple[Workload, float]:
    """Workload of a step, and its seconds in processor time, which other processes do not add to."""
    with TemporaryDirectory() as folder:
        recipe = case.recipe(Path(folder), dtype)
        stage = recipe.trained["only"]
        (role,) = stage.roles(recipe.stages)
        sizes = model_sizes(recipe.model)
        run = dry_run(recipe, "only", random_base(recipe.model), "single")
    limit = MicroBatch(case.tokens, case.length)
    run.step(limit)  # the first one makes buffers
    seconds = []
    for _ in range(_REPEATS):
        started = time.process_time()
        run.step(limit)
        seconds.append((time.process_time() - started) / torch.get_num_threads())
    micro = Micro(1, case.tokens, case.length, ANSWER_SHARE[1] * case.tokens)
    return Computation(sizes, role.method, dtype, stage.train.memory).step(micro), min(seconds)


def _fit(measured: Sequence[tuple[Workload, float]], assumed: Any) -> dict[str, float]:
    """Costs by least squares of relative errors, regularised towards the assumed ones."""
    scale = np.array([assumed[name] for name in AMOUNTS])
    rows: NDArray[np.float64] = np.array([np.array(astuple(work)) * scale / seconds for work, seconds in measured])
    pull = np.sqrt(_TRUST) * np.eye(len(scale))
    found, *_ = np.linalg.lstsq(
        np.vstack([rows, pull]), np.concatenate([np.ones(len(rows)), np.diag(pull)]), rcond=None
    )
    return dict(zip(AMOUNTS, (np.maximum(found, 0.05) * scale).tolist(), strict=True))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    measure_rates()
