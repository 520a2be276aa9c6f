"""Tokens a second with several LoRA adapters in one batch on CPU: vLLM with our plugin against vLLM as it comes.

    python tests/bench/multilora.py [--rounds 3] [--out build/bench/multilora.json]

SmolLM2-135M-Instruct, bf16, greedy, 64 prompts, 32 new tokens each, rank-16 adapters on all linear layers, four slots.
Prompt i uses adapter i modulo the number of adapters.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from harness import Arm, Comparison, emit, run_benchmark
from precision import DTYPE

PROMPTS, NEW_TOKENS, RANK, SLOTS = 64, 32, 16, 4
ADAPTERS = {"base": 0, "1 adapter": 1, "2 adapters": 2, "4 adapters": 4}
TARGETS = {"1 adapter": 1.8, "4 adapters": 1.6}
SUBJECTS = ("a quiet drama", "a heist film", "a documentary about bees", "a musical", "a western", "a courtroom film")


def make_adapters(model: Path, folder: Path) -> list[Path]:
    """Random adapters whose B is not zero, in peft's format."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for seed in range(SLOTS):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, DTYPE))
        config = LoraConfig(r=RANK, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
        made.append(folder / f"adapter-{seed}")
        get_peft_model(base, config).save_pretrained(str(made[-1]))
    return made


def measure_engine(model: Path, adapters: list[Path]) -> None:
    """One engine, every mix of adapters in turn; emits tokens a second by mix."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model=str(model),
        dtype=DTYPE,
        enforce_eager=True,
        max_model_len=256,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=SLOTS,
        max_lora_rank=RANK,
    )
    requests = [LoRARequest(path.name, number, str(path)) for number, path in enumerate(adapters, 1)]
    prompts = [f"Write review number {i} of {SUBJECTS[i % len(SUBJECTS)]} in one sentence:" for i in range(PROMPTS)]

    def rate(count: int, new_tokens: int) -> float:
        loras = [requests[i % count] for i in range(PROMPTS)] if count else None
        sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        start = time.perf_counter()
        done = engine.generate(prompts, sampling, lora_request=loras, use_tqdm=False)
        seconds = time.perf_counter() - start
        return sum(len(one.outputs[0].token_ids) for one in done) / seconds

    figures = {}
    for name, count in ADAPTERS.items():
        rate(count, 2)  # loads the adapters and settles allocator and threads
        figures[name] = rate(count, NEW_TOKENS)
    emit(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench/multilora.json"))
    parser.add_argument("--engine", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        measure_engine(options.engine[0], options.engine[1:])
        return

    from triptych.models.base import resolve_base
    from triptych.recipe.model import Model

    model = resolve_base(Model(base="smollm2-135m-instruct"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--engine", str(model), *map(str, make_adapters(model, Path(folder)))]
        common = {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        }
        arms = [
            Arm("triptych", command, {**common, "VLLM_PLUGINS": "triptych_cpu_lora"}),
            Arm("stock vLLM", command, {**common, "VLLM_PLUGINS": ""}),
        ]
        comparisons = [Comparison(name, "triptych", "stock vLLM", TARGETS.get(name)) for name in ADAPTERS]
        run_benchmark("Multi-LoRA on CPU", "tokens/s", arms, comparisons, options.rounds, options.out)


if __name__ == "__main__":
    main()
