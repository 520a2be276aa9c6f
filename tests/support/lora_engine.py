"""A vLLM engine with LoRA adapters, float32, in a process of its own: it binds its threads to cores.

`python lora_engine.py OUT` reads `EngineJob` from stdin as JSON, and writes `EngineAnswers` to OUT.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = tuple[str | None, list[int]]
"""An adapter, or None for the base, and the token ids of a prompt."""


@dataclass(frozen=True)
class EngineJob:
    """What an engine is started with and asked for."""

    model: str
    adapters: Mapping[str, str]
    """Name -> folder."""
    batches: Sequence[Sequence[Row]]
    """Each is one call; rows of adapters that the engine does not load are left out."""
    new_tokens: int = 1
    """Greedy tokens after each prompt, up to the end token."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the engine."""


@dataclass(frozen=True)
class EngineAnswers:
    """Of each batch, by row."""

    unfit: Mapping[str, str]
    """Adapters that the engine did not load, and what it said."""
    tokens: Sequence[Sequence[list[int]]]
    """New token ids."""
    scores: Sequence[Sequence[list[float]]]
    """Log-probabilities of each prompt's tokens but the first."""


@contextmanager
def answering(job: EngineJob, out: Path) -> Iterator["subprocess.Popen[str]"]:
    """An engine at work on a job, whose end `read_answers` waits for; killed if it outlives the block."""
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("VLLM_PLUGINS", None)
    command = [sys.executable, "-P", __file__, str(out)]  # its folder has files of libraries' names
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment) as engine:
        assert engine.stdin is not None
        engine.stdin.write(json.dumps(asdict(job)))
        engine.stdin.close()
        try:
            yield engine
        finally:
            engine.kill()


def read_answers(engine: "subprocess.Popen[str]", out: Path) -> EngineAnswers:
    """Wait for an engine's end, and read what it wrote."""
    assert engine.wait(300) == 0
    return EngineAnswers(**json.loads(out.read_text(encoding="utf-8")))


def ask(job: EngineJob, out: Path) -> EngineAnswers:
    """Answers of an engine that lives for one job."""
    with answering(job, out) as engine:
        return read_answers(engine, out)


def _main(out: Path) -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    job = EngineJob(**json.load(sys.stdin))
    engine = LLM(
        model=job.model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        enable_lora=True,
        max_loras=len(job.adapters),
        max_lora_rank=16,
        **job.settings,
    )
    loras = {name: LoRARequest(name, i, folder) for i, (name, folder) in enumerate(job.adapters.items(), 1)}
    unfit: dict[str, str] = {}
    for name, request in loras.items():
        try:
            engine.llm_engine.add_lora(request)
        except ValueError as error:
            unfit[name] = str(error)
    sampling = SamplingParams(temperature=0.0, max_tokens=job.new_tokens, prompt_logprobs=0)
    tokens, scores = [], []
    for batch in job.batches:
        rows = [(name, ids) for name, ids in batch if name not in unfit]
        prompts = [{"prompt_token_ids": ids} for _, ids in rows]
        requests = [loras[name] if name else None for name, _ in rows]
        done = engine.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
        tokens.append([list(one.outputs[0].token_ids) for one in done])
        scores.append([_scores(one.prompt_logprobs, ids) for one, (_, ids) in zip(done, rows, strict=True)])
    out.write_text(json.dumps(asdict(EngineAnswers(unfit, tokens, scores))), encoding="utf-8")


def _scores(logprobs: Any, ids: Sequence[int]) -> list[float]:
    return [at[token].logprob for at, token in zip(logprobs[1:], ids[1:], strict=True)]


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
