"""Micro-batches by real steps, under a limit that the kernel enforces: what runs out of memory is the try alone."""

from pathlib import Path

import pytest

from triptych.cli.plan import WORKER_MODULES
from triptych.measure.probe import Try, probe
from triptych.plan import Machine, Node
from triptych.recipe import Recipe

LAPTOP = Machine("laptop", (Node(cpus=2, gpus=0, memory=24 * 2**30),))


@pytest.mark.slow
def test_a_try_that_runs_out_of_memory_is_no_more_than_that(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    train = {"steps": 1, "batch": {"rows": 32, "max_length": 4096}, "memory": {"loss_chunk": None}}
    stage = {"kind": "sft", "data": {"train": {"path": "none.jsonl"}}, "train": train}
    model = {"base": str(tiny_model_dir), "dtype": "float32"}
    recipe = Recipe.model_validate({"name": "tiny", "memory": "800MB", "model": model, "stages": {"only": stage}})
    told: list[Try] = []
    found = probe(recipe, "only", LAPTOP, tell=told.append, worker_modules=WORKER_MODULES)
    fit, misfit = ([one.micro_tokens for one in found.tries if one.fits is fits] for fits in (True, False))
    assert max(fit) < min(misfit)
    fastest = max(found.tries, key=lambda one: one.tokens_per_second)
    assert found.micro_tokens == fastest.micro_tokens
    assert fastest.micro_tokens in fit
    assert told == list(found.tries)
    assert next(one for one in told if one.fits).tokens_per_second > 0
    again = probe(recipe, "only", LAPTOP, tell=told.append)
    assert again.cached
    assert (again.micro_tokens, len(told)) == (found.micro_tokens, len(found.tries))
