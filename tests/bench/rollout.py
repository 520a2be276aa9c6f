"""Rollout tokens a second on CPU: our pool with two engines and with one, merged and adapter sync, against HF generate.

    python tests/bench/rollout.py [--rounds 2] [--out build/bench/rollout.json]

SmolLM2-135M-Instruct, bf16, 64 chat prompts, 32 new tokens each, sampled at temperature 1 with the log-probability of
every token, answers never cut short. The pool runs a rank-16 adapter on all linear layers that it got by a sync; HF
generate (one left-padded batch, all cores) runs the base alone, which costs it nothing for the adapter.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import Arm, Comparison, emit, run_benchmark
from precision import DTYPE

PROMPTS, NEW_TOKENS, RANK, MODEL_LEN, REPEATS = 64, 32, 16, 256, 2
SUBJECTS = ("a quiet drama", "a heist film", "a documentary about bees", "a musical", "a western", "a courtroom film")
TARGET = 2.0
POOLS = {
    "two engines": {"engines": 2, "threads": 1, "sync": "merged"},
    "one engine": {"engines": 1, "threads": 2, "sync": "merged"},
    "two engines, adapter": {"engines": 2, "threads": 1, "sync": "adapter"},
}


def chat_prompts(model: Path) -> list[list[int]]:
    from triptych.models.base import load_tokenizer

    tokenizer = load_tokenizer(model)
    asked = [f"Write a one-sentence opinion number {i} of {SUBJECTS[i % len(SUBJECTS)]}." for i in range(PROMPTS)]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in asked
    ]


def make_adapter(model: Path, folder: Path) -> None:
    """A random adapter whose B is not zero, in peft's format."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.005)
    network.save_pretrained(str(folder))


def median_rate(generate: Callable[[int], int]) -> float:
    """Median tokens a second of `generate(seed) -> tokens`, the first run left out."""
    rates = []
    for seed in range(REPEATS + 1):
        start = time.perf_counter()
        tokens = generate(seed)
        rates.append(tokens / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def measure_pool(name: str, model: Path, adapter: Path) -> None:
    import ray

    from triptych.engines.base import SampleRequest
    from triptych.recipe.rollout import Rollout, Sampling
    from triptych.rollout.pool import RolloutPool

    prompts, sampling = chat_prompts(model), Sampling(max_new_tokens=NEW_TOKENS)
    content = (adapter / "adapter_model.safetensors").read_bytes()
    config = json.loads((adapter / "adapter_config.json").read_text())
    ray.init(num_cpus=2, include_dashboard=False)
    start = time.perf_counter()
    pool = RolloutPool.start(str(model), DTYPE, Rollout.model_validate(POOLS[name]), MODEL_LEN, RANK, [])
    started = time.perf_counter() - start
    syncs = [pool.sync(content, config, version).seconds for version in range(REPEATS + 1)]

    def generate(seed: int) -> int:
        requests = [SampleRequest(str(i), tuple(ids), 1000 * seed + i) for i, ids in enumerate(prompts)]
        return sum(len(record.logprobs) for record in pool.generate(requests, sampling))

    rate = median_rate(generate)
    pool.close()
    emit({"tokens/s": rate, "sync seconds": statistics.median(syncs[1:]), "start seconds": started})


def measure_hf(model: Path) -> None:
    import torch

    from triptych.models.base import load_causal_lm, load_tokenizer

    prompts, pad = chat_prompts(model), load_tokenizer(model).pad_token_id
    network = load_causal_lm(model, getattr(torch, DTYPE))
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = network.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=pad,
                use_cache=True,
                return_dict_in_generate=True,
                output_scores=True,
            )
            logprobs = network.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        return logprobs.numel()

    emit({"tokens/s": median_rate(generate)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench/rollout.json"))
    parser.add_argument("--pool", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--hf", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pool:
        name, model, adapter = options.pool
        return measure_pool(name, Path(model), Path(adapter))
    if options.hf:
        return measure_hf(options.hf)

    from triptych.models.base import resolve_base
    from triptych.recipe.model import Model

    base = resolve_base(Model(base="smollm2-135m-instruct"))
    with tempfile.TemporaryDirectory() as folder:
        make_adapter(base, Path(folder))
        me = [sys.executable, __file__]
        arms = [Arm(name, [*me, "--pool", name, str(base), folder]) for name in POOLS]
        arms.append(Arm("HF generate", [*me, "--hf", str(base)]))
        comparisons = [
            Comparison("tokens/s", "two engines", "HF generate", TARGET),
            Comparison("tokens/s", "one engine", "HF generate", TARGET),
            Comparison("tokens/s", "two engines", "one engine"),
            Comparison("tokens/s", "two engines", "two engines, adapter"),
        ]
        run_benchmark("Rollouts on CPU", "tokens/s, seconds", arms, comparisons, options.rounds, options.out)
    return None


if __name__ == "__main__":
    main()
