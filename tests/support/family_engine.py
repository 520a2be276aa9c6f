"""Greedy answers of the vLLM engine beside those of transformers, for the tiny random model of each family.

`python -m tests.support.family_engine OUT MODE/NAME...` adds a line of JSON to OUT for each family beside
it. `verdicts` starts it, and starts it again behind a family that took the process with it.
"""

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.support.families import tiny
from triptych.engines.base import REPLACED, EnginePlan, SampleRequest, SyncMode
from triptych.engines.vllm import VllmEngine
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.models.adapter import peft_json
from triptych.models.families import DIFFERS, EQUAL
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from triptych.recipe.matrix import Lora
from triptych.recipe.rollout import Rollout, Sampling

DIED = "the process died"
ADAPTER = "adapter"
SHOWN = 160
"""Characters of a message that the table shows."""
NEW_TOKENS = 32
LENGTHS = (1, 7, 18, 45, 100)
"""Tokens of the prompts of one batch: below and above a window, and more than one block of the engine's cache."""
TIE = 1e-4
"""Share of the largest logit by which a token may be behind the best: between such two, rounding may choose."""
GREEDY = Sampling.model_construct(temperature=0.0, top_p=1.0, max_new_tokens=NEW_TOKENS)
"""Not among what a recipe may say: the sampler of rollouts has no greedy mode."""
LORA = Lora(r=4, alpha=8, experts=False)
"""Experts stay: vLLM has no LoRA for them on CPU."""
ROLE = "policy"
_ROOT = Path(__file__).parents[2]
_GENERATOR = torch.Generator().manual_seed(3)
Prompts = Sequence[Sequence[int]]
PROMPTS: Prompts = [torch.randint(3, 96, (length,), generator=_GENERATOR).tolist() for length in LENGTHS]


def lively(name: str, **changes: Any) -> PreTrainedModel:
    """A family's tiny model in float32 whose answers depend on the whole prompt; `changes`: see `tiny`.

    With embeddings as large as what the blocks add, one that shares them with its head says one token for ever.
    """
    model = tiny(name, torch.float32, **changes)
    model.get_input_embeddings().weight.data.mul_(0.1)
    return model


def answers(engine: VllmEngine, prompts: Prompts) -> list[list[int]]:
    """The engine's greedy tokens after each prompt, all in one batch."""
    requests = [SampleRequest(str(i), tuple(prompt), seed=i) for i, prompt in enumerate(prompts)]
    return [list(record.response_ids) for record in engine.generate(requests, GREEDY)]


@torch.no_grad()
def difference(found: Sequence[Sequence[int]], model: PreTrainedModel, prompts: Prompts) -> str | None:
    """The first token of an answer that transformers would not choose; None: its greedy answers are the same.

    Each prompt and its answer go through the model by themselves, without a cache.
    """
    for prompt, answer in zip(prompts, found, strict=True):
        length, ids = len(prompt), torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids, use_cache=False).logits[0, length - 1 : -1]
        best, chosen = logits.amax(-1), logits.gather(-1, ids[0, length:, None])[:, 0]
        behind = (best - chosen) / logits.abs().amax(-1)
        if (wrong := (behind > TIE).nonzero()).numel():
            at = int(wrong[0])
            return f"{DIFFERS} at token {at} after a prompt of {length}, whose logit is behind by {behind[at]:.0e}"
    return None


def prepare(name: str, folder: Path) -> PreTrainedModel:
    """Write the family's model and a random LoRA on all linear layers; gives the model that both make."""
    lively(name).save_pretrained(folder)
    model = RoleModel(lively(name))
    torch.manual_seed(0)
    model.add(ROLE, LORA, trainable=True)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters_of(ROLE).values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapter = adapter_of(LORA, model.adapter(ROLE), ROLE)
    tensors = {key: tensor.contiguous() for key, tensor in adapter.weights.items()}
    (folder / ADAPTER).mkdir()
    save_file(tensors, folder / ADAPTER / ADAPTER_WEIGHTS)
    (folder / ADAPTER / ADAPTER_CONFIG).write_text(json.dumps(peft_json(adapter.configs["lora"])))
    return _merged(lively(name), tensors)


@torch.no_grad()
def _merged(model: PreTrainedModel, lora: dict[str, Tensor]) -> PreTrainedModel:
    for key, a in lora.items():
        if key.endswith(".lora_A.weight"):
            layer = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            product = LORA.alpha / LORA.r * (lora[key.replace("lora_A", "lora_B")] @ a)
            layer.weight += product.T if isinstance(layer, Conv1D) else product
    return model


@dataclass(frozen=True)
class Said:
    """Answers of an engine for the base and with the adapter, as far as it came, and what it raised."""

    base: list[list[int]] | None = None
    adapter: list[list[int]] | None = None
    error: str = ""


class Trials:
    """Engines that start one after another in this process; an actor, too.

    No model of transformers is made here: vLLM changes their classes where it runs a family by them.
    """

    def __init__(self) -> None:
        from vllm.model_executor.models import registry

        registry._run_in_subprocess = lambda look: look()  # vLLM looks at each class in a process of its own: 10 s

    def ask(self, base: Path, policy: tuple[bytes, dict[str, Any]], mode: SyncMode, prompts: Prompts) -> Said:
        """Answers of an engine for a model in a folder and what it is sent by a sync."""
        engine, said = None, Said()
        try:
            engine = VllmEngine(0, plan(base, mode))
            said = replace(said, base=answers(engine, prompts))
            content, settings = policy
            if settings == REPLACED:
                engine.replace([content], 1)
            else:
                engine.sync(content, settings, 1)
            return replace(said, adapter=answers(engine, prompts))
        except Exception as error:  # noqa: BLE001 - whatever vLLM says is the result
            return replace(said, error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            del engine
            _forget()


def as_lora(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """What a sync sends of a LoRA in peft's files."""
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return (folder / ADAPTER_WEIGHTS).read_bytes(), config


def judged(said: Said, plain: PreTrainedModel, adapted: PreTrainedModel, prompts: Prompts) -> str:
    """`EQUAL`, the first difference from transformers, or what the engine raised."""
    if said.base is not None and (found := difference(said.base, plain, prompts)):
        return found
    if said.error or said.adapter is None:
        return re.sub(r"\S*/triptych-adapter-\w+", "the adapter", said.error.replace("|", " "))[:SHOWN]
    found = difference(said.adapter, adapted, prompts)
    return f"{found}, with an adapter" if found else EQUAL


def plan(folder: Path, mode: SyncMode) -> EnginePlan:
    """An engine's plan for a model of the families."""
    rollout = Rollout(kv_cache_gb=0.05)
    return EnginePlan(str(folder), "float32", rollout, mode, max_model_len=192, lora_r=LORA.r, stop_token_ids=())


def _forget() -> None:
    """Let the next engine start in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def verdicts(names: Sequence[str], modes: Sequence[SyncMode] = get_args(SyncMode)) -> dict[str, dict[str, str]]:
    """Family -> way of weight sync -> `EQUAL`, or why not."""
    with TemporaryDirectory() as folder:
        adapted = {name: prepare(name, Path(folder, name)) for name in names}
        jobs = [f"{mode}/{name}" for mode in modes for name in names]
        said: dict[str, Said] = {}
        while left := [job for job in jobs if job not in said]:
            said |= _in_a_process(left, Path(folder)) or {left[0]: Said(error=DIED)}
        return {
            name: {mode: judged(said[f"{mode}/{name}"], lively(name), adapted[name], PROMPTS) for mode in modes}
            for name in names
        }


def _in_a_process(jobs: Sequence[str], folder: Path) -> dict[str, Said]:
    """What engines said of the first of these jobs, up to one that takes the process with it."""
    out = folder / "said"
    out.write_text("")
    variables = VllmEngine.environment(plan(folder, "merged"))
    # The seed keeps the order of sets in messages.
    variables |= {"PYTHONPATH": os.pathsep.join((str(_ROOT), str(_ROOT / "platform"))), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "tests.support.family_engine", str(out), *jobs]
    subprocess.run(command, env=os.environ | variables, check=False, capture_output=True)
    lines = map(json.loads, out.read_text().splitlines())
    return {job: Said(**said) for job, said in lines}


def _main(out: Path, jobs: Sequence[str]) -> None:
    trials = Trials()
    for job in jobs:
        mode, _, name = job.partition("/")
        base = out.parent / name
        said = trials.ask(base, as_lora(base / ADAPTER), cast("SyncMode", mode), PROMPTS)
        with out.open("a") as lines:
            lines.write(json.dumps([job, asdict(said)]) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
