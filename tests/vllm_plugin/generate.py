"""A vLLM engine in a process of its own (it binds its threads to cores): JSON on stdin, token ids into a file.

Input: {model, adapters: {name: folder}, batches: [[[adapter name or null, prompt ids], ...], ...], new_tokens, out}.
Output: for each batch, the new token ids of each of its rows, up to the end token. Greedy, fp32, one slot an adapter.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    job = json.load(sys.stdin)
    engine = LLM(
        model=job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=len(job["adapters"]),
        max_lora_rank=16,
    )
    loras = {name: LoRARequest(name, i, folder) for i, (name, folder) in enumerate(job["adapters"].items(), 1)}
    sampling = SamplingParams(temperature=0.0, max_tokens=job["new_tokens"])
    results = []
    for batch in job["batches"]:
        prompts = [{"prompt_token_ids": ids} for _, ids in batch]
        requests = [loras[name] if name else None for name, _ in batch]
        done = engine.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
        results.append([list(one.outputs[0].token_ids) for one in done])
    Path(job["out"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
