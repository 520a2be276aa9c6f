"""Every strategy on one GPU: the losses of `single`, with each method and each kind of checkpointing.

Run by torchrun it is the worker, which writes what it measured:

    python -m torch.distributed.run --standalone --nproc-per-node 1 tests/gpu/strategies.py OUT SHAPE DEVICE STRATEGY...
"""

import gc
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from result import Figures, Result, Verdict, attempt
from shapes import METHODS, OBJECTIVE, SHAPES, Setup, Shape, batches_of, make_learner, make_model, random_rows
from triptych.forward.process_memory import peak_memory

PART = "strategies"
STRATEGIES: tuple[str, ...] = ("single", "ddp", "fsdp")
ZERO = ("zero1", "zero2", "zero3")
CHECKPOINTING = ("none", "selective", "full")
STEPS, ROWS = 5, 8
ALLOWED = 1e-4
"""Largest difference of a loss from that of `single` without checkpointing."""
TIMEOUT_S = 300


def measure(shape: Shape, device: torch.device, strategy: str, method: str, checkpointing: str) -> Figures:
    """Losses, seconds a step after the first, and the peak, of some steps in float32, two micro-batches each."""
    model = make_model(shape, METHODS[method], device, torch.float32, checkpointing=checkpointing)
    learner = make_learner(model, strategy=strategy)
    rows = random_rows(shape, ROWS)
    batches = [*batches_of(rows[: ROWS // 2], 1 << 30), *batches_of(rows[ROWS // 2 :], 1 << 30)]
    figures: Figures = {}
    for number in range(STEPS):
        if number == 1:
            started = time.perf_counter()
        figures[f"loss {number}"] = learner.step(OBJECTIVE, batches).metrics["loss"]
    figures["seconds a step"] = (time.perf_counter() - started) / (STEPS - 1)
    if device.type == "cuda":
        figures["peak GB"] = peak_memory(device) / 1e9
    return figures


def work(out: Path, shape: Shape, device: torch.device, strategies: Sequence[str]) -> None:
    """Write each combination's result as soon as it is there: a later one may end the process."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    gc.freeze()  # DeepSpeed collects garbage when it starts, which takes long with all modules among it
    results: list[Result] = []
    for strategy, method, checkpointing in itertools.product(strategies, METHODS, CHECKPOINTING):

        def measured() -> tuple[Verdict, Figures]:
            return "measured", measure(shape, device, strategy, method, checkpointing)  # noqa: B023 - called at once

        results.append(attempt(PART, f"{strategy}, {method}, checkpointing {checkpointing}", measured))
        out.write_text(json.dumps([vars(result) for result in results]))
    dist.destroy_process_group()


def check(setup: Setup) -> Iterator[Result]:
    shape, device = setup.shapes[0], setup.device
    strategies = STRATEGIES
    if importlib.util.find_spec("deepspeed"):
        strategies += ZERO
    else:
        yield Result(PART, "zero1, zero2, zero3", "skipped", {"deepspeed": "is not installed here"})
    found = _torchrun(shape, device, strategies)
    single = {method: _losses(found, f"single, {method}, checkpointing none") for method in METHODS}
    for result in found:
        yield _judged(result, single.get(result.case.split(", ")[1], []))


def _torchrun(shape: Shape, device: torch.device, strategies: Sequence[str]) -> list[Result]:
    """The results of the worker; if it broke off, one more that says so."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
        command += [__file__, str(out), shape.name, device.type, *strategies]
        try:
            code: int | str = subprocess.run(command, stdout=sys.stderr, timeout=TIMEOUT_S).returncode
        except subprocess.TimeoutExpired:
            code = f"none after {TIMEOUT_S} s"
        results = [Result(**one) for one in json.loads(out.read_text())] if out.exists() else []
    if code != 0:
        done = f"after {results[-1].case}" if results else "before the first result"
        results.append(Result(PART, "worker, all that follow", "ERROR", {"exit code": str(code), "broke off": done}))
    return results


def _losses(results: Sequence[Result], case: str) -> list[float]:
    figures = next((result.figures for result in results if result.case == case), {})
    return [float(value) for name, value in figures.items() if name.startswith("loss ")]


def _judged(result: Result, expected: list[float]) -> Result:
    if result.verdict != "measured":
        return result
    losses = _losses([result], result.case)
    known = len(losses) == len(expected)
    off = max(abs(a - b) for a, b in zip(losses, expected, strict=True)) if known else float("inf")
    rest: dict[str, Any] = {name: value for name, value in result.figures.items() if not name.startswith("loss ")}
    figures = {"off by": off, "allowed": ALLOWED, "first loss": losses[0], "last loss": losses[-1], **rest}
    return Result(PART, result.case, "ok" if off <= ALLOWED and losses[-1] < losses[0] else "FAILED", figures)


if __name__ == "__main__":
    work(Path(sys.argv[1]), SHAPES[sys.argv[2]], torch.device(sys.argv[3]), sys.argv[4:])
