"""Search for the largest and fastest micro-batch by real steps of the longest rows, each try in fresh processes.

Only the try runs out of memory. It counts as fitting where all ranks got through.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from triptych import __version__, storage
from triptych.cache import cache_dir
from triptych.errors import RunError
from triptych.models.sizes import read_config
from triptych.plan import Machine, MachineProfile, Option, options
from triptych.plan.calibration import NO_PROFILE
from triptych.plan.processor import processor
from triptych.plan.settings import SettingName, Settings
from triptych.recipe import Recipe
from triptych.recipe.amount import bytes_of
from triptych.train.allocator import allocator_variables

_SIGNS = ("out of memory", "outofmemory", "can't allocate memory", "memoryerror", "bad_alloc", "could not create a")
MICRO_TOKENS: tuple[SettingName, ...] = ("micro_tokens",)
_SIGNALS = (-6, -9, -11)
"""Abort, kill and fault: exit codes of processes that ran out of memory without an exception."""


@dataclass(frozen=True)
class Try:
    """Result of two steps with one size of micro-batch."""

    micro_tokens: int
    fits: bool
    tokens_per_second: float = 0.0
    """Tokens per second of the second step, all ranks together."""
    peak_bytes: int = 0
    """Peak bytes of the rank with the highest."""


@dataclass(frozen=True)
class Probed:
    """Result of a probe, with its tries in their order."""

    micro_tokens: int
    """The fastest of those that fit."""
    tries: tuple[Try, ...]
    cached: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def probe(
    recipe: Recipe,
    name: str,
    machine: Machine,
    *,
    profile: MachineProfile = NO_PROFILE,
    tell: Callable[[Try], None] = lambda tried: None,
    worker_modules: Sequence[str] = (),
) -> Probed:
    """Bisect for the largest micro-batch that fits, beginning at the predicted one; earlier results are cached.

    All ranks run on this machine. `recipe.memory` limits them together.

    Args:
        name: the stage.
        profile: measurements of the machine that order the tries.
        tell: called with each try when it is done.
        worker_modules: modules that every rank imports too, because what a worker loads takes memory.

    Raises:
        RunError: not even one longest row fits, or a try failed for another reason.
    """
    kept = _file(recipe, name, machine)
    if kept.is_file():
        content = json.loads(kept.read_text(encoding="utf-8"))
        return Probed(content["micro_tokens"], tuple(Try(**tried) for tried in content["tries"]), cached=True)
    own = options(recipe, name, machine, profile=profile, vary=())[0].settings
    found = options(recipe, name, machine, profile=profile, vary=MICRO_TOKENS)
    sized = sorted(found, key=lambda option: option.settings.micro_tokens)
    tries: list[Try] = []
    fits, fails, number = -1, len(sized), _expected(sized)
    while fails - fits > 1:
        tried = attempt(recipe, name, replace(own, micro_tokens=sized[number].settings.micro_tokens), worker_modules)
        tell(tried)
        tries.append(tried)
        fits, fails = (number, fails) if tried.fits else (fits, number)
        number = (fits + fails) // 2
    if fits < 0:
        raise RunError(f"stages.{name}: not even a micro-batch of {sized[0].settings.micro_tokens} tokens fits")
    best = max((tried for tried in tries if tried.fits), key=lambda tried: tried.tokens_per_second)
    probed = Probed(best.micro_tokens, tuple(tries))
    kept.write_text(json.dumps(probed.as_dict(), indent=2), encoding="utf-8")
    return probed


def _expected(sized: list[Option]) -> int:
    """Index of the first try: the largest micro-batch whose expected peak has room."""
    return max((n for n, option in enumerate(sized) if option.peak.expected <= option.room), default=0)


def _file(recipe: Recipe, name: str, machine: Machine) -> Path:
    """Cache file of a probe, named by a digest of all that its result depends on."""
    stage = recipe.stages[name].model_dump(mode="json")
    for field in ("data", "register_as", "needs"):
        stage.pop(field, None)
    about = [
        __version__,
        stage,
        recipe.model.model_dump(mode="json"),
        read_config(recipe.model),
        recipe.memory,
        processor(),
        str(machine),
    ]
    return cache_dir("probes") / f"{storage.digest_of(about)[:24]}.json"


def attempt(recipe: Recipe, name: str, setting: Settings, worker_modules: Sequence[str] = ()) -> Try:
    """Take two steps with one combination of settings, in a fresh process for each rank.

    Raises:
        RunError: a rank failed for another reason than memory.
    """
    stage = recipe.trained[name]
    changed = recipe.model_copy(update={"stages": {**recipe.stages, name: setting.on(stage)}})
    ranks = stage.workers.count
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "recipe": changed.model_dump(mode="json"),
            "stage": name,
            "strategy": setting.strategy,
            "folder": folder,
            "worker_modules": list(worker_modules),
        }
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "triptych.measure.probe", str(Path(folder, "job.json"))]
        with ExitStack() as stack:
            logs = [stack.enter_context(Path(folder, f"{rank}.err").open("wb")) for rank in range(ranks)]
            env = os.environ | allocator_variables()
            codes = _ends(
                [subprocess.Popen([*command, str(rank)], env=env, stderr=log) for rank, log in enumerate(logs)]
            )
        if any(codes):
            _refuse_other_ends(codes, [Path(folder, f"{rank}.err").read_text() for rank in range(ranks)])
            return Try(setting.micro_tokens, fits=False)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]
    speed = sum(one["tokens"] for one in found) / max(one["seconds"] for one in found)
    return Try(setting.micro_tokens, True, speed, max(one["peak_bytes"] for one in found))


def _ends(started: list["subprocess.Popen[bytes]"]) -> list[int]:
    """Exit codes of all ranks. Once a rank fails, the others, which may wait for it, are ended."""
    try:
        while all(process.poll() in (None, 0) for process in started):
            if all(process.poll() == 0 for process in started):
                return [0] * len(started)
            time.sleep(0.1)
        return [process.poll() or 0 for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _refuse_other_ends(codes: list[int], errors: list[str]) -> None:
    """Raise RunError where no rank failed for lack of memory."""
    for code, error in zip(codes, errors, strict=True):
        if code in _SIGNALS or any(sign in error.lower() for sign in _SIGNS):
            return
    text = "\n".join(error.strip()[-1000:] for code, error in zip(codes, errors, strict=True) if code)
    raise RunError(f"a probe failed, and not for memory: {text}")


def _rank(job: dict[str, Any], rank: int) -> None:
    """Run one rank of a try: two steps of its share of the global batch, with the longest rows."""
    import torch
    import torch.distributed as dist

    from triptych.forward.process_memory import peak_memory
    from triptych.measure.dry_run import accumulated, dry_run, random_base
    from triptych.plan.memory import micro_batch

    for module in job["worker_modules"]:
        import_module(module)
    recipe = Recipe.model_validate(job["recipe"])
    stage, name = recipe.trained[job["stage"]], job["stage"]
    workers = stage.workers
    if recipe.memory is not None and not workers.gpus:
        _limit_growth(bytes_of(recipe.memory) // workers.count)
    torch.set_num_threads(workers.threads or int(-(-workers.cpus // 1)))
    device = torch.device("cuda", rank) if workers.gpus else torch.device("cpu")
    if workers.gpus and recipe.memory is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, bytes_of(recipe.memory) / whole), device)
    if workers.count > 1:
        meeting = f"file://{job['folder']}/meeting"
        backend = "nccl" if workers.gpus else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=workers.count)
    run = dry_run(recipe, name, random_base(recipe.model), job["strategy"], device)
    limits = micro_batch(stage)
    count = accumulated(stage, limits)
    run.step(limits, count)
    started = time.perf_counter()
    run.step(limits, count)
    if workers.gpus:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    found = {"tokens": limits.tokens * count, "seconds": seconds, "peak_bytes": peak_memory(device)}
    Path(job["folder"], f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if workers.count > 1:
        dist.destroy_process_group()


def _limit_growth(memory: int) -> None:
    """Limit this process's memory: the kernel limits what it maps, of which not all is resident."""
    now = psutil.Process().memory_info()
    limit = now.data + max(0, memory - now.rss)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    _rank(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(sys.argv[2]))
