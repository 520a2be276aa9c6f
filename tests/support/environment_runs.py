"""RL runs on the tiny model whose environment replies, as the tests and their ranks make them."""

from pathlib import Path
from typing import Any

from tests.support.rl_step import RlWorker, comparable, first_sync, make_run, pool_of, rl_step
from triptych.data.replies import ReplyTokens
from triptych.engines.base import RolloutRecord, SampleRequest
from triptych.models.base import load_tokenizer
from triptych.recipe.rollout import Sampling

HERE = "tests.support.environments"
SAMPLING = {"max_new_tokens": 5, "temperature": 1.0}


def run_of(
    folder: Path, home: Path, of: str = "Counting", arguments: dict[str, Any] | None = None, **terms: Any
) -> RlWorker:
    """A run whose turns end as the chat template ends them, so that each is replied to."""
    environment = {"name": "function", "function": f"{HERE}:{of}", "max_turns": 3, "max_reply_tokens": 48}
    environment |= {"arguments": arguments or {}, **terms.pop("environment", {})}
    rollout = {"prompts_per_step": 3, "samples_per_prompt": 2, "sampling": SAMPLING}
    settings: dict[str, Any] = {"rewards": [{"name": "environment"}], "missing_eos_penalty": 0.0} | terms
    run = make_run(folder, home, environment=environment, rollout=rollout, evaluation=SAMPLING, **settings)
    first_sync(run, 0)
    end_turns(run, ReplyTokens(load_tokenizer(folder), "user").end)
    return run


def end_turns(run: RlWorker, end: int) -> None:
    """Have every answer of the fake pool end with a token, with the log-probability that it has there."""
    pool = pool_of(run)
    drawn = pool.generate

    def generate(requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        found = []
        for record in drawn(requests, sampling):
            ids = (*record.response_ids[:-1], end)
            logprobs = pool.logprobs([[*record.prompt_ids, *ids]], [len(record.prompt_ids)])[0][0]
            values = (record.lease, record.prompt_ids, ids, tuple(logprobs), (pool.version,) * len(ids))
            found.append(RolloutRecord(*values, "stop", record.seed, 0))
        pool.records[-1] = found
        return found

    pool.generate = generate  # type: ignore[method-assign]


def first_step_of_each(
    folder: Path, home: Path, strategy: str, algorithms: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Metrics of the first step, of two minibatches, by each algorithm."""
    found = {}
    for name, settings in algorithms.items():
        terms: dict[str, Any] = {"arguments": {"last": 0}, "strategy": strategy, "minibatches": 2}
        run = run_of(folder, home / name, algorithm=settings, **terms)
        found[name] = comparable(rl_step(run, 1))
    return found
