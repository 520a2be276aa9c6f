"""A vLLM engine in a process of its own (it binds its threads to cores): JSON on stdin, log-probabilities into a file.

Input: {model, adapters: {name: folder}, batches: [[[adapter name or null, prompt ids], ...], ...], out}.
Output: for each batch, the log-probabilities of each prompt's tokens but the first. In float32, prefill in chunks of
`CHUNK` tokens.
"""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

CHUNK = 64


def main() -> None:
    job = json.load(sys.stdin)
    engine = LLM(
        model=job["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_batched_tokens=CHUNK,
        enable_lora=True,
        max_loras=len(job["adapters"]),
        max_lora_rank=16,
    )
    loras = {name: LoRARequest(name, i, folder) for i, (name, folder) in enumerate(job["adapters"].items(), 1)}
    sampling = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=0)
    scores = []
    for batch in job["batches"]:
        prompts = [{"prompt_token_ids": ids} for _, ids in batch]
        requests = [loras[name] if name else None for name, _ in batch]
        done = engine.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
        scores.append(
            [
                [at[token].logprob for at, token in zip(one.prompt_logprobs[1:], ids[1:], strict=True)]
                for one, (_, ids) in zip(done, batch, strict=True)
            ]
        )
    Path(job["out"]).write_text(json.dumps(scores))


if __name__ == "__main__":
    main()
